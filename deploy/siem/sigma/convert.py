"""Converts the rules beside it for Splunk and for Elastic: writes the two files, or with --check says which is stale.

Needs pysigma and its backends for Splunk and Elasticsearch, from PyPI; requirements.txt beside it names the versions.
"""

import json
import sys
from pathlib import Path

from sigma.backends.elasticsearch import ESQLBackend
from sigma.backends.splunk import SplunkBackend
from sigma.collection import SigmaCollection
from sigma.processing.pipeline import ProcessingPipeline
from sigma.rule import SigmaRule

HERE = Path(__file__).parent
WRITTEN_BY = "made by deploy/siem/sigma/convert.py from the rules beside it"
# As Splunk counts them, and as Elastic does: severity and risk score.
# Events come late: after an outage of hours their own time is hours ago. So searches go by when they arrived, and as
# far back for their own time as a stream may catch up.
CATCH_UP = "-30d@d"
# What arrives is not found at once, by either.
SETTLES = 1
LEVELS = {"informational": (1, "low", 21), "low": (2, "low", 21), "medium": (3, "medium", 47), "high": (5, "high", 73)}


def rules():
    # Conversion changes rules, so each one begins with fresh ones.
    return SigmaCollection.load_ruleset(sorted((HERE / "rules").glob("*.yml")))


def pipeline(name):
    return ProcessingPipeline.from_yaml((HERE / "pipelines" / f"{name}.yml").read_text(encoding="utf-8"))


def converted(backend):
    """Pairs of a rule and its query. Rules that only serve others have none of their own."""
    collection = rules()
    if collection.errors:
        raise SystemExit(f"rules with errors: {collection.errors}")
    backend.convert(collection)
    return [(rule, rule.get_conversion_result()[0]) for rule in collection.rules if rule._output]


def splunk():
    text = f"# {WRITTEN_BY}. Enable those that you want:\n"
    text += "# every search looks at what arrived since it ran last, however old that is.\n"
    for rule, query in converted(SplunkBackend(pipeline("splunk"))):
        lines = [line.strip() for line in query.splitlines() if line.strip()]
        span = 5 if isinstance(rule, SigmaRule) else rule.timespan.seconds // 60
        text += f"""
[{rule.title}]
description = {" ".join(rule.description.split())}
search = {" ".join(lines)}
disabled = 1
enableSched = 1
cron_schedule = */5 * * * *
dispatch.index_earliest = -{span + SETTLES}m@m
dispatch.index_latest = -{SETTLES}m@m
dispatch.earliest_time = {CATCH_UP}
dispatch.latest_time = +1d@d
counttype = number of events
relation = greater than
quantity = 0
alert.track = 1
alert.severity = {LEVELS[rule.level.name.lower()][0]}
"""
    return text


def elastic():
    text = ""
    for rule, query in converted(ESQLBackend(pipeline("ecs"))):
        span = 5 if isinstance(rule, SigmaRule) else rule.timespan.seconds // 60
        _, severity, risk = LEVELS[rule.level.name.lower()]
        text += json.dumps({
            "rule_id": str(rule.id), "name": rule.title, "description": " ".join(rule.description.split()),
            "type": "esql", "language": "esql", "query": " ".join(query.split()), "severity": severity,
            "risk_score": risk, "interval": "5m", "from": f"now-{span + SETTLES}m", "to": "now", "enabled": False,
            "timestamp_override": "event.ingested", "timestamp_override_fallback_disabled": False,
            "false_positives": rule.falsepositives, "author": ["Defib"], "references": [], "tags": ["defib"],
        }, sort_keys=True) + "\n"
    return text


FILES = {
    "../splunk/defib/default/savedsearches.conf": splunk,
    "../elastic/rules.ndjson": elastic,
}


def main(arguments):
    stale = []
    for name, make in FILES.items():
        path, text = HERE / name, make()
        if arguments == ["--check"]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        raise SystemExit(f"stale, run convert.py: {', '.join(stale)}")


if __name__ == "__main__":
    main(sys.argv[1:])
