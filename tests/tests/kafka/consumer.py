"""Reads a topic with clients that nobody here wrote, and counts what is wrong with it.

consumer.py BROKERS TOPIC LAST OUT: reads all partitions until event LAST is there and nothing more comes, or nothing
comes for a while. Writes each event once, as it was received and in the order of their sequence, to OUT, and counts to
standard output.
"""

import json
import sys
import time

from cloudevents.core.bindings import kafka
from cloudevents.core.formats.json import JSONFormat
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

PATIENCE = 20.0
# How long the topic must stay silent after the last event: doubles may follow it.
SILENCE = 0.5


def read(brokers, topic, last):
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "judge", "enable.auto.commit": False})
    deadline = time.monotonic() + PATIENCE
    while True:
        found = consumer.list_topics(topic, timeout=10).topics[topic]
        if found.partitions or time.monotonic() > deadline:
            break
    consumer.assign([TopicPartition(topic, one, OFFSET_BEGINNING) for one in found.partitions])
    records, heard, done = [], time.monotonic(), False
    while time.monotonic() - heard < (SILENCE if done else PATIENCE):
        for message in consumer.consume(1000, 0.2):
            if message.error():
                raise SystemExit(f"the topic can't be read: {message.error()}")
            heard = time.monotonic()
            records.append(message)
            done = done or b'"sequence":%d,' % last in message.value() or b'"seq":%d,' % last in message.value()
    consumer.close()
    return records


def main(brokers, topic, last, out):
    records = read(brokers, topic, int(last))
    counts = {"records": len(records), "invalid": 0, "reordered": 0, "doubles": 0, "gaps": 0, "split": 0}
    first, newest, places, problems = {}, {}, {}, []
    for message in records:
        headers = {name: value for name, value in message.headers()}
        try:
            event = kafka.from_kafka(kafka.KafkaMessage(headers, message.key(), message.value()), JSONFormat())
            sequence = int(event.get_extension("sequence"))
            data = event.get_data()
            inner = data["metadata"]["uid"] if "metadata" in data else data["stream"]["id"]
            if inner != event.get_id() or event.get_extension("partitionkey") != message.key().decode():
                raise ValueError(f"{inner} is told as {event.get_id()} with key {message.key()}")
        except Exception as error:  # whatever another's library thinks is wrong
            counts["invalid"] += 1
            problems.append(f"{message.partition()}/{message.offset()}: {error!r}")
            continue
        recovery = event.get_extension("correlationid")
        if recovery and places.setdefault(recovery, message.partition()) != message.partition():
            counts["split"] += 1
        if sequence in first:
            counts["doubles"] += 1
            continue
        binary = any(name.startswith("ce_") for name in headers)
        text = message.value().decode()
        first[sequence] = text if binary else text.split(',"data":', 1)[1][:-1]
        if newest.get(message.partition(), 0) > sequence:
            counts["reordered"] += 1
            problems.append(f"event {sequence} came after event {newest[message.partition()]}")
        newest[message.partition()] = sequence
    counts["events"], counts["last"] = len(first), max(first, default=0)
    counts["gaps"] = counts["last"] - len(first)
    counts["partitions"] = len(newest)
    counts["problems"] = problems[:10]
    with open(out, "w", encoding="utf-8") as file:
        file.writelines(first[sequence] + "\n" for sequence in sorted(first))
    print(json.dumps(counts))


main(*sys.argv[1:])
