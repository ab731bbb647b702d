"""Reads OCSF events, one per line, and holds each against the schema of its class that PyPI's ocsf-json-schema
makes. Prints one line per problem; ends with 1 if there was one, or no event at all."""
import json
import sys

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

made = {}
schemas = {}
seen = problems = 0
for number, line in enumerate(sys.stdin, 1):
    if not line.strip():
        continue
    event = json.loads(line)
    seen += 1
    version, uid = event["metadata"]["version"], event["class_uid"]
    profiles = tuple(event["metadata"].get("profiles", []))
    if version not in made:
        made[version] = OcsfJsonSchemaEmbedded(get_ocsf_schema(version))
    key = (version, uid, profiles)
    if key not in schemas:
        name = made[version].lookup_class_name_from_uid(uid)
        schemas[key] = Draft202012Validator(made[version].get_class_schema(name, list(profiles)))
    for error in schemas[key].iter_errors(event):
        problems += 1
        print(f"line {number}, {event['metadata'].get('event_code')}: {error.json_path}: {error.message[:300]}")
    # What the generated schema does not say: constraints of the standard.
    if uid == 2005 and not ("assignee" in event or "assignee_group" in event):
        problems += 1
        print(f"line {number}: an incident needs assignee or assignee_group")
    if event["type_uid"] != uid * 100 + event["activity_id"]:
        problems += 1
        print(f"line {number}: type_uid does not follow from class and activity")
print(f"checked {seen}")
sys.exit(1 if problems or not seen else 0)
