"""Judges what is in deploy/siem by parsers, compilers and checkers that others wrote.

configuration.py SIEM EVENTS WORK: EVENTS holds events in OCSF, of every kind. Prints what was checked, one thing a line;
ends with a failure at the first that is wrong.
"""

import configparser
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import xml.etree.ElementTree as xml
from pathlib import Path

from logstash_pipeline_parser import Pipeline
from vrl_python import VRLRuntime


def flat(value, prefix=""):
    for key, inner in value.items():
        yield f"{prefix}{key}", inner
        if isinstance(inner, dict):
            yield from flat(inner, f"{prefix}{key}.")


def vector(siem, events):
    """The graph is whole, and its programs do what they should, by Vector's own language."""
    parts = tomllib.loads((siem / "vector/vector.toml").read_text(encoding="utf-8"))
    outputs = set(parts["sources"])
    for name, transform in parts["transforms"].items():
        outputs.add(name)
        if transform.get("reroute_dropped"):
            outputs.add(f"{name}.dropped")
        outputs |= {f"{name}.{route}" for route in transform.get("route", {})}
    used = set()
    for name, part in (parts["transforms"] | parts["sinks"]).items():
        for wanted in part["inputs"]:
            assert wanted in outputs, f"{name} wants {wanted}, which nothing makes"
            used.add(wanted)
    assert set(parts["sources"]) <= used, "a source leads nowhere"
    run = VRLRuntime().execute
    source = {name: part["source"] for name, part in parts["transforms"].items() if part["type"] == "remap"}
    alarms = 0
    for line in events:
        event = json.loads(line)
        body = run(source["defib_body"], {"message": line, "appname": "defibd"}).processed_event
        assert body == event, f"of a syslog message became {body}"
        made = run(source["defib_events"], body).processed_event
        assert (made["id"], made["kind"]) == (event["metadata"]["uid"], event["metadata"]["event_code"]), made
        assert made["sequence"] == event["metadata"]["sequence"] and made["raw_data"] == event["raw_data"], made
        assert made["alarm"] == (event["severity_id"] >= 4) and made["timestamp"], made
        alarms += made["alarm"]
        condition = parts["transforms"]["defib_by_urgency"]["route"]["alarms"]
        assert run(condition, made).runtime_result == made["alarm"]
    assert 0 < alarms < len(events)
    for wrong in ({"message": "no JSON"}, {"message": "[1]"}):
        refuse(run, source["defib_body"], wrong)
    for wrong in ({}, {"metadata": {"product": {"name": "another"}}}):
        refuse(run, source["defib_events"], wrong)
    print(f"vector: its graph, and its programs over {len(events)} events")


def refuse(run, source, event):
    try:
        run(source, dict(event))
    except RuntimeError:
        return
    raise SystemExit(f"vector takes {event}")


def logstash(siem):
    """Its grammar; no Logstash runs it."""
    tree = Pipeline.from_file(siem / "logstash/defib.conf").parse()
    assert [part[0] for part in tree] == ["input", "filter", "output"], tree
    assert "[event][ingested]" in str(tree[1]), "the rules of Elastic go by it"
    output = dict(tree[2][1][0][1])
    assert output["document_id"] == ["%{[event][id]}"] and output["action"] == ["create"], output
    print("logstash: its grammar")


def splunk(siem, events, work):
    """The app, by Splunk's own checker; the searches of the dashboard, by the fields that they name."""
    package = work / "defib.tgz"
    with tarfile.open(package, "w:gz") as archive:
        archive.add(siem / "splunk/defib", "defib")
    report = work / "appinspect.json"
    command = [Path(sys.executable).parent / "splunk-appinspect", "inspect", package, "--mode", "precert"]
    subprocess.run([*command, "--output-file", report, "--data-format", "json"], check=True, capture_output=True)
    report = json.loads(report.read_text(encoding="utf-8"))
    bad = [
        check
        for app in report["reports"]
        for group in app["groups"]
        for check in group["checks"]
        if check["result"] in ("error", "failure", "future_failure", "warning")
    ]
    assert not bad and report["summary"]["success"] > 50, bad or report["summary"]
    records = [dict(flat(json.loads(line))) for line in events]
    fields = {field for record in records for field in record}
    dashboard = xml.parse(siem / "splunk/defib/default/data/ui/views/defib.xml")
    queries = [query.text for query in dashboard.iter("query")]
    assert len(queries) > 5
    for query in queries:
        for field in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", query):
            assert field in fields, f"no event has {field}: {query}"
        assert any(found(record, query.split("|")[0]) for record in records), f"finds nothing: {query}"
    print(f"splunk: its app ({report['summary']['success']} checks), and {len(queries)} searches of its dashboard")


def alerts(siem):
    """They see what comes late: they go by when an event arrived, and miss no minute between two runs."""
    searches = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    searches.read(siem / "splunk/defib/default/savedsearches.conf", encoding="utf-8")
    for name in searches.sections():
        search = searches[name]
        every = int(re.fullmatch(r"\*/(\d+) \* \* \* \*", search["cron_schedule"])[1])
        earliest, latest = (
            int(re.fullmatch(r"-(\d+)m@m", search[f"dispatch.index_{end}"])[1]) for end in ("earliest", "latest")
        )
        assert earliest - latest >= every, f"{name}: it misses what arrived between two runs"
        days = int(re.fullmatch(r"-(\d+)d@d", search["dispatch.earliest_time"])[1])
        assert days >= 7, f"{name}: it misses what comes late"
    template = json.loads((siem / "elastic/index-template.json").read_text(encoding="utf-8"))
    mapped = template["template"]["mappings"]["properties"]["event"]["properties"]
    rules = (siem / "elastic/rules.ndjson").read_text(encoding="utf-8").splitlines()
    for rule in map(json.loads, rules):
        name, override = rule["name"], rule["timestamp_override"]
        assert override == "event.ingested" and mapped["ingested"] == {"type": "date"}, name
        back, every = (int(re.fullmatch(r"(?:now-)?(\d+)m", rule[key])[1]) for key in ("from", "interval"))
        assert back > every, f"{name}: it misses what arrived between two runs"
    assert len(rules) == len(searches.sections()) > 5
    print(f"alerts: {len(rules)} by when an event arrived")


def found(record, search):
    """The few words that our searches begin with."""
    rest = search
    for field, values in re.findall(r"([\w.]+) IN \(([^)]*)\)", search):
        rest = re.sub(r"[\w.]+ IN \([^)]*\)", "", rest, count=1)
        if str(record.get(field)) not in re.findall(r'"([^"]*)"', values):
            return False
    for field, relation, value in re.findall(r'([\w.]+)(=|>)"?([^"\s]+)"?', rest):
        held = record.get(field)
        if field == "sourcetype":
            assert value == "defib:ocsf", search
        elif held is None or (relation == ">" and held <= int(value)):
            return False
        elif relation == "=" and value not in ("*", str(held)):
            return False
    return True


def main(siem, events, work):
    siem, work = Path(siem), Path(work)
    events = Path(events).read_text(encoding="utf-8").splitlines()
    subprocess.run([sys.executable, siem / "sigma/convert.py", "--check"], check=True)
    print("sigma: what is made of the rules is what is there")
    vector(siem, events)
    logstash(siem)
    splunk(siem, events, work)
    alerts(siem)


main(*sys.argv[1:])
