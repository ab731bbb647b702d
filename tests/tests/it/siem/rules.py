"""Executes the Sigma rules over files of events.

rules.py SIEM NAME=FILE...: a NAME that begins with ecs is read with the pipeline for ECS, every other one as OCSF. Prints
how many rows each rule finds in each file, as JSON.
"""

import json
import sys
from pathlib import Path

import duckdb
from sigma.collection import SigmaCollection
from sigma.processing.pipeline import ProcessingPipeline
from sigma.validators.core import validators
from sigma.validation import SigmaValidator
from sigma_backend_duckdb import DuckDBBackend

# Rules of SigmaHQ's own collection that don't apply: ATT&CK has no tactic for most of what happens here, and fetching it is
# no business of a test.
NOT_OURS = {"attacktag", "invalid_attack_tag"}


class Backend(DuckDBBackend):
    # Without a group it selects all columns beside an aggregate, which no SQL allows.
    value_count_correlation_query = {
        "default": "SELECT 1{aggregate} FROM ({search}) AS subquery{groupby} HAVING {condition}"
    }


def flat(value, prefix=""):
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner)


def load(name, rules):
    collection = SigmaCollection.load_ruleset(sorted((rules / "rules").glob("*.yml")))
    assert not collection.errors, collection.errors
    steps = ProcessingPipeline()
    if name.startswith("ecs"):
        steps = ProcessingPipeline.from_yaml((rules / "pipelines/ecs.yml").read_text(encoding="utf-8"))
    backend = Backend(steps)
    backend.convert(collection)
    return [(rule.title, rule.get_conversion_result()[0]) for rule in collection.rules if rule._output]


def main(siem, *files):
    rules = Path(siem) / "sigma"
    collection = SigmaCollection.load_ruleset(sorted((rules / "rules").glob("*.yml")))
    chosen = [one for name, one in validators.items() if name not in NOT_OURS]
    issues = SigmaValidator(chosen).validate_rules(collection)
    if issues:
        raise SystemExit(f"pySigma's own checks: {issues}")
    records = {}
    for file in files:
        name, path = file.split("=", 1)
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        records[name] = [dict(flat(json.loads(line))) for line in lines]
    counts = {}
    for name, rows in records.items():
        # A column that no event of a format has is a mistake of the rule, so only theirs are there.
        alike = [one for other, one in records.items() if other.split("-")[0] == name.split("-")[0]]
        columns = sorted({column for rows in alike for row in rows for column in row})
        connection = duckdb.connect()
        quoted = ", ".join(f'"{column}" VARCHAR' for column in columns)
        connection.execute(f"CREATE TABLE logs ({quoted})")
        places = ", ".join("?" for _ in columns)
        if rows:
            values = [[row.get(column) for column in columns] for row in rows]
            connection.executemany(f"INSERT INTO logs VALUES ({places})", values)
        for title, query in load(name, rules):
            counts.setdefault(title, {})[name] = len(connection.execute(query).fetchall())
    print(json.dumps(counts))


main(*sys.argv[1:])
