"""`pullthrough audit`: what on a registry's storage will never go away, and why. Changes nothing.

May run beside a serving registry: what is filled or deleted meanwhile can show up once and be gone
in the next run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from pullthrough.storage import program, statefile, survey
from pullthrough.storage.errors import StateMalformed, StorageError
from pullthrough.storage.store import Clock, FileStore, Store, SystemClock
from pullthrough.storage.survey import Leak

EXPLANATIONS: dict[Leak, str] = {
    Leak.UNCOVERED: "artifacts that no entry covers: never collected (reseed)",
    Leak.BEYOND: "entries later than now + ttl (reseed)",
    Leak.BAD_NAME: "links under a name that no entry can fire for",
    Leak.BAD_LINK: "empty or garbage links: requests fail",
    Leak.ALIAS: "links by another algorithm's digest",
    Leak.DANGLING: "links whose data is gone",
    Leak.EMPTIED: "emptied directories",
    Leak.ORPHAN: "data that no link leads to",
    Leak.TORN: "data of no bytes",
    Leak.DEAD_TAG: "tags whose manifest is gone",
    Leak.TEMPORARY: "temporary files left behind",
}


def audit(store: Store, clock: Clock, *, ttl: int | None) -> Mapping[str, Any]:
    """Read everything and count. `ttl` in nanoseconds, if entries are to be held against it.

    Raises StorageUnreadable.
    """
    found = survey.read_artifacts(store)
    survey.read_data(store, found)
    survey.read_tags(store, found)
    problem = None
    try:
        current = statefile.load_serving(store, clock, attempts=8)
    except StateMalformed as error:
        current, problem = None, error.problem
    entries = current.entries if current is not None else {}
    survey.note_uncovered(found, entries, None if ttl is None else clock.now() + ttl)
    return {
        "artifacts": len(found.artifacts),
        "covered": len(found.artifacts) - found.leaks.get(Leak.UNCOVERED, 0),
        "blobs": found.blobs,
        "bytes": found.bytes,
        "state": problem or ("none" if current is None else "whole"),
        "leaks": {leak.value: found.leaks[leak] for leak in Leak if leak in found.leaks},
        "examples": {leak.value: found.examples[leak] for leak in Leak if leak in found.leaks},
    }


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 nothing to do, 1 something leaks, 2 usage or unreadable."""
    program.short_lived()
    parser = program.parser("audit", "Say what no entry covers and what nothing can reach.")
    parser.add_argument("--ttl", type=program.ttl, metavar="DURATION")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    try:
        report = audit(FileStore(given.storage), SystemClock(), ttl=given.ttl)
    except StorageError as error:
        sys.stderr.write(f"pullthrough audit: {program.printable(error.message)}\n")
        return 2
    if given.json:
        sys.stdout.write(json.dumps({"version": 1, **report}) + "\n")
    else:
        sys.stdout.write(_text(report))
    is_malformed = report["state"] not in {"none", "whole"}
    return 1 if report["leaks"] or is_malformed else 0


def _text(report: Mapping[str, Any]) -> str:
    lines = [
        f"{report['artifacts']} artifacts, {report['covered']} covered;"
        f" {report['blobs']} blobs, {report['bytes']} bytes; state file: {report['state']}"
    ]
    for leak in Leak:
        count = report["leaks"].get(leak.value)
        if count:
            lines.append(
                f"{count:8} {EXPLANATIONS[leak]}, such as"
                f" {program.printable(report['examples'][leak.value][0])}"
            )
    return "\n".join(lines) + "\n"
