"""docs/gc.md from the table: `python -m pullthrough.gc.document` prints it, a test holds the file to it."""

from __future__ import annotations

import sys

from pullthrough import gc
from pullthrough.gc.table import IRREVERSIBLE, TABLE

DIAGRAM = """```mermaid
stateDiagram-v2
    [*] --> Off: Create
    [*] --> On: Create
    Off --> Job: CreateJob
    Job --> Job: WaitForRetry, CreateJob (a failing Job costs nothing)
    Job --> Off: DeleteJob (obstructing, stale, not wanted)
    Job --> Gate: the Job succeeded
    Gate --> Gate: WaitForUpstream
    Gate --> Trial: RollOn
    Trial --> On: Verify
    Trial --> Off: Revert (three failures)
    On --> Off: RollOff
```"""


def page() -> str:
    """The whole document."""
    lines = [
        "# Garbage collection: turning it on and off",
        "",
        "Generated from `operator/pullthrough/gc/table.py` by `make generate`.",
        "",
        (gc.__doc__ or "").strip(),
        "",
        DIAGRAM,
        "",
        "The first row that matches what is observed of a member names the one thing to do. Steps in **bold** stop a serving",
        "registry for a restart.",
        "",
        "| | row | when | step | why |",
        "|---|---|---|---|---|",
    ]
    for number, row in enumerate(TABLE, 1):
        step = f"**{row.step.value}**" if row.step in IRREVERSIBLE else row.step.value
        lines.append(f"| {number} | {row.name} | {row.when} | {step} | {row.why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
