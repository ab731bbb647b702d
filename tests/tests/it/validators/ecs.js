// Reads ECS events, one per line, and holds each against the fields, types, allowed values and pairs of category and
// type that npm's @elastic/ecs ships. Fields below `defib` are our own. Prints one line per problem; ends with 1 if
// there was one, or no event at all.
const { EcsFlat } = require('@elastic/ecs');

let seen = 0;
let problems = 0;
const problem = (number, text) => {
  problems += 1;
  console.log(`line ${number}: ${text}`);
};
const isOfType = (type, value) => {
  switch (type) {
    case 'long': return Number.isSafeInteger(value);
    case 'date': return typeof value === 'string' && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/.test(value);
    case 'keyword': case 'match_only_text': case 'wildcard': case 'constant_keyword': return typeof value === 'string';
    default: return false;
  }
};
const flatten = (value, path, out) => {
  if (value !== null && typeof value === 'object' && !Array.isArray(value)) {
    for (const key of Object.keys(value)) flatten(value[key], path ? `${path}.${key}` : key, out);
  } else {
    out.push([path, value]);
  }
};
const check = (number, event) => {
  const fields = [];
  for (const key of Object.keys(event)) if (key !== 'defib') flatten(event[key], key, fields);
  for (const [path, value] of fields) {
    const known = EcsFlat[path];
    if (!known) { problem(number, `unknown field ${path}`); continue; }
    const isArray = (known.normalize || []).includes('array');
    if (isArray !== Array.isArray(value)) { problem(number, `${path} must ${isArray ? '' : 'not '}be a list`); continue; }
    for (const one of isArray ? value : [value]) {
      if (!isOfType(known.type, one)) problem(number, `${path}: ${JSON.stringify(one)} is no ${known.type}`);
      const allowed = (known.allowed_values || []).map((entry) => entry.name);
      if (allowed.length && !allowed.includes(one)) problem(number, `${path}: ${one} is not one of ${allowed}`);
    }
  }
  for (const needed of ['@timestamp', 'ecs.version', 'event.kind', 'event.category', 'event.type', 'event.outcome']) {
    if (!fields.some(([path]) => path === needed)) problem(number, `lacks ${needed}`);
  }
  for (const category of event.event.category) {
    const entry = EcsFlat['event.category'].allowed_values.find((value) => value.name === category);
    const types = (entry && entry.expected_event_types) || [];
    for (const type of event.event.type) {
      if (!types.includes(type)) problem(number, `${event.event.action}: category ${category} has no type ${type}`);
    }
  }
};
const lines = require('fs').readFileSync(0, 'utf8').split('\n');
lines.forEach((line, at) => {
  if (!line.trim()) return;
  seen += 1;
  check(at + 1, JSON.parse(line));
});
console.log(`checked ${seen}`);
process.exit(problems || !seen ? 1 : 0);
