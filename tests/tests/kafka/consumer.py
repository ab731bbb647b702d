"""Reads a topic with clients that nobody here wrote, and counts what is wrong with it.

consumer.py BROKERS TOPIC LAST OUT: reads all partitions until event LAST is there and nothing more comes, or nothing
comes for a while. Writes each event once, as it was received and in the order of their sequence, to OUT, and counts to
standard output.
"""

import sys
import time

from cloudevents.core.bindings import kafka
from cloudevents.core.formats.json import JSONFormat
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from counts import Counts, inner

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
    counts = Counts()
    counts.counts["records"] = len(records)
    for message in records:
        headers = {name: value for name, value in message.headers()}
        try:
            event = kafka.from_kafka(kafka.KafkaMessage(headers, message.key(), message.value()), JSONFormat())
            sequence = int(event.get_extension("sequence"))
            told = inner(event.get_data())
            if told != (sequence, event.get_id()) or event.get_extension("partitionkey") != message.key().decode():
                raise ValueError(f"{told} is told as {event.get_id()} with key {message.key()}")
        except Exception as error:  # whatever another's library thinks is wrong
            counts.invalid(f"{message.partition()}/{message.offset()}", repr(error))
            continue
        binary = any(name.startswith("ce_") for name in headers)
        text = message.value().decode()
        text = text if binary else text.split(',"data":', 1)[1][:-1]
        counts.take(sequence, text, message.partition(), event.get_extension("correlationid"))
    counts.tell(out)


main(*sys.argv[1:])
