"""What is wrong with events that arrived: counted from their numbers alone."""

import json


class Counts:
    def __init__(self):
        self.counts = {"records": 0, "invalid": 0, "reordered": 0, "doubles": 0, "gaps": 0, "split": 0}
        self.first, self.newest, self.places, self.problems = {}, {}, {}, []

    def invalid(self, place, why):
        self.counts["invalid"] += 1
        self.problems.append(f"{place}: {why}")

    def take(self, sequence, text, part=0, recovery=None):
        """An event arrived in a part of the stream: a partition, or the whole. Whether it is the first time."""
        if recovery and self.places.setdefault(recovery, part) != part:
            self.counts["split"] += 1
        if sequence in self.first:
            self.counts["doubles"] += 1
            return
        self.first[sequence] = text
        if self.newest.get(part, 0) > sequence:
            self.counts["reordered"] += 1
            self.problems.append(f"event {sequence} came after event {self.newest[part]}")
        self.newest[part] = sequence

    def tell(self, out):
        """Writes each event once, in the order of their numbers, to a file, and the counts to standard output."""
        told = self.counts
        told["events"], told["last"] = len(self.first), max(self.first, default=0)
        told["gaps"] = told["last"] - len(self.first)
        told["partitions"] = len(self.newest)
        told["problems"] = self.problems[:10]
        with open(out, "w", encoding="utf-8") as file:
            file.writelines(self.first[sequence] + "\n" for sequence in sorted(self.first))
        print(json.dumps(told))


def inner(event):
    """Number and id that an event says of itself, in any format that is JSON."""
    if "metadata" in event:
        return event["metadata"]["sequence"], event["metadata"]["uid"]
    if "ecs" in event:
        return event["event"]["sequence"], event["event"]["id"]
    return event["seq"], event["stream"]["id"]
