"""Reads what a receiver wrote in each of its lives, and counts what is wrong with it.

received.py OUT FILE...: files in the order of the receiver's lives. Writes each event once, as it was received and in the
order of their sequence, to OUT, and counts to standard output.
"""

import json
import sys

from counts import Counts, inner


def main(out, *files):
    counts = Counts()
    for path in files:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
        # A receiver that is killed while it writes leaves half a line at its end, or nothing.
        for number, line in enumerate(lines[:-1], 1):
            counts.counts["records"] += 1
            try:
                sequence, _ = inner(json.loads(line))
            except Exception as error:  # whatever is wrong with it
                counts.invalid(f"{path}, line {number}", repr(error))
                continue
            counts.take(sequence, line)
    counts.tell(out)


main(*sys.argv[1:])
