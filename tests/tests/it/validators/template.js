// template.js TEMPLATE: reads ECS events, one per line, and holds each against an index template of Elasticsearch: each
// field has a mapping that takes its values, and those that are of ECS have the mapping that npm's @elastic/ecs ships.
// Prints one line per problem; ends with 1 if there was one, or no event at all.
const { EcsFlat } = require('@elastic/ecs');
const fs = require('fs');

const { mappings } = JSON.parse(fs.readFileSync(process.argv[2], 'utf8')).template;
const problems = new Set();
const used = new Set();
const text = (value) => typeof value === 'string';
// What each type takes. A keyword takes numbers too: they are words then.
const takes = {
  date: text,
  match_only_text: text,
  keyword: (value) => text(value) || Number.isFinite(value),
  long: (value) => Number.isSafeInteger(value),
  boolean: (value) => typeof value === 'boolean',
};
const asShipped = (path, mapping) => {
  const known = EcsFlat[path];
  if (!known) { problems.add(`${path} is not of ECS`); return; }
  for (const name of ['type', 'ignore_above', 'index', 'doc_values']) {
    if (known[name] !== mapping[name]) problems.add(`${path}: ${name} is ${mapping[name]}, in ECS ${known[name]}`);
  }
  const more = Object.fromEntries((known.multi_fields || []).map((one) => [one.name, { type: one.type }]));
  if (JSON.stringify(more) !== JSON.stringify(mapping.fields || {})) problems.add(`${path}: other fields within than in ECS`);
};
const check = (value, mapping, path) => {
  if (value === null) return;
  if (!mapping) { problems.add(`${path} has no mapping`); return; }
  used.add(path);
  if (Array.isArray(value)) { value.forEach((one) => check(one, mapping, path)); return; }
  if (typeof value === 'object') {
    if (mapping.type && mapping.type !== 'object') problems.add(`${path} is an object, and mapped as ${mapping.type}`);
    for (const key of Object.keys(value)) check(value[key], (mapping.properties || {})[key], path ? `${path}.${key}` : key);
    return;
  }
  if (!takes[mapping.type] || !takes[mapping.type](value)) {
    problems.add(`${path}: ${JSON.stringify(value)} is not taken as ${mapping.type || 'an object'}`);
  }
  if (path !== 'defib' && !path.startsWith('defib.')) asShipped(path, mapping);
};
// Set by who receives events, not by us.
const ingested = 'event.ingested';
const unused = (mapping, path) => {
  if (path === ingested) { used.add(path); asShipped(path, mapping); }
  if (path && !used.has(path)) problems.add(`${path} is mapped, and no event has it`);
  for (const key of Object.keys(mapping.properties || {})) unused(mapping.properties[key], path ? `${path}.${key}` : key);
};
const lines = fs.readFileSync(0, 'utf8').split('\n').filter((line) => line.trim());
lines.forEach((line) => check(JSON.parse(line), mappings, ''));
unused(mappings, '');
problems.forEach((problem) => console.log(problem));
console.log(`checked ${lines.length}`);
process.exit(problems.size || !lines.length ? 1 : 0);
