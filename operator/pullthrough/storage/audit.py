"""`pullthrough audit`: what lies on a registry's storage, what of it will never go away, and why.

Changes nothing. May run beside a serving registry: what is filled or deleted meanwhile can show up
once and be gone in the next run.
"""

from __future__ import annotations

import bisect
import json
import sys
from collections.abc import Mapping
from typing import Any

from pullthrough.storage import layout, leftovers, program, state, statefile, survey
from pullthrough.storage.errors import StateMalformed, StorageError
from pullthrough.storage.opening import open_store
from pullthrough.storage.state import SECOND, Entry
from pullthrough.storage.store import Clock, Store, SystemClock
from pullthrough.storage.survey import EXPLANATIONS, Leak, Progress, Survey

VERSION = 1
HOUR = 3600 * SECOND
EDGES = tuple(hours * HOUR for hours in (0, 1, 6, 24, 72, 168, 336, 720, 2160, 8760))
"""Ends of the histogram's spans, from now: overdue, an hour, six, a day, three, one week, two, 30
days, 90, a year; later ones share one."""


def audit(
    store: Store,
    clock: Clock,
    *,
    ttl: int | None,
    with_repositories: bool = False,
    progress: Progress | None = None,
) -> Mapping[str, Any]:
    """Read everything and count. `ttl` in nanoseconds, if entries are to be held against it.

    The shape is that of `--json` but for version and storage. Raises StorageUnreadable.
    """
    found = leftovers.read_all(store, Survey(is_tolerant=True), progress)
    problem = None
    try:
        current = statefile.load_serving(store, clock, attempts=8)
    except StateMalformed as error:
        current, problem = None, error.problem
    entries = current.entries if current is not None else {}
    now = clock.now()
    survey.note_uncovered(found, entries, None if ttl is None else now + ttl)
    _weigh_uncovered(found, entries)
    artifacts = found.artifacts
    linked = {_digest(key) for key in artifacts}
    status = problem or ("none" if current is None else "whole")
    report = {
        "time": state.format_time(now),
        "artifacts": len(artifacts),
        "covered": len(artifacts) - found.leaks.get(Leak.UNCOVERED, 0),
        "blobs": found.blobs,
        "bytes": found.bytes,
        "uniqueBytes": sum(found.sizes.get(digest, 0) for digest in linked),
        "state": {
            "status": status,
            "entries": len(entries),
            "gone": sum(key not in artifacts for key in entries),
            "overdue": sum(entry.expiry <= now for entry in entries.values()),
            "odd": len(current.odd) if current is not None else 0,
        },
        "leaks": [
            {
                "class": leak.value,
                "count": found.leaks[leak],
                "bytes": found.leaked.get(leak, 0),
                "examples": found.examples[leak],
                "remedy": EXPLANATIONS[leak].remedy,
            }
            for leak in Leak
            if leak in found.leaks
        ],
        "expiries": expiries(found, entries, now),
    }
    if with_repositories:
        report["repositories"] = _repositories(found, entries)
    return report


def expiries(found: Survey, entries: Mapping[str, Entry], now: int) -> list[dict[str, Any]]:
    """What would expire before when: artifacts, and the bytes of data, each once, at its first
    expiry, which deletes it for all repositories. Spans without any are left out."""
    latest = max((entry.expiry for entry in entries.values()), default=now)
    edges = [now + edge for edge in EDGES]
    if latest >= edges[-1]:
        edges.append(-(-(latest + 1) // SECOND) * SECOND)
    artifacts = [0] * len(edges)
    weights = [0] * len(edges)
    first: dict[str, int] = {}
    for key, entry in entries.items():
        if key not in found.artifacts:
            continue
        number = bisect.bisect_right(edges, entry.expiry)
        artifacts[number] += 1
        digest = _digest(key)
        first[digest] = min(first.get(digest, number), number)
    for digest, number in first.items():
        weights[number] += found.sizes.get(digest, 0)
    return [
        {"before": state.format_time(edge), "artifacts": count, "bytes": weight}
        for edge, count, weight in zip(edges, artifacts, weights, strict=True)
        if count
    ]


def _weigh_uncovered(found: Survey, entries: Mapping[str, Entry]) -> None:
    """Bytes that never expire: data of which no artifact is covered in any repository."""
    covered = {_digest(key) for key in found.artifacts if key in entries}
    bare = {_digest(key) for key in found.artifacts if key not in entries} - covered
    found.leaked[Leak.UNCOVERED] = sum(found.sizes.get(digest, 0) for digest in bare)


def _repositories(found: Survey, entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Per repository: `bytes` of what it links to, each once; `ownBytes` nobody else links to."""
    sharers: dict[str, int] = {}
    by_name: dict[str, list[str]] = {}
    for key in found.artifacts:
        repository, _, digest = key.rpartition("@")
        sharers[digest] = sharers.get(digest, 0) + 1
        by_name.setdefault(repository, []).append(digest)
    rows = []
    for name, digests in sorted(by_name.items()):
        rows.append(
            {
                "name": name,
                "artifacts": len(digests),
                "covered": sum(layout.key(name, digest) in entries for digest in digests),
                "bytes": sum(found.sizes.get(digest, 0) for digest in digests),
                "ownBytes": sum(
                    found.sizes.get(digest, 0) for digest in digests if sharers[digest] == 1
                ),
            }
        )
    return rows


def _digest(key: str) -> str:
    return key[key.rindex("@") + 1 :]


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 nothing to do, 1 something leaks, 2 usage or unreadable."""
    program.short_lived()
    parser = program.parser("audit", "Say what no entry covers and what nothing can reach.")
    parser.add_argument("--ttl", type=program.ttl, metavar="DURATION")
    parser.add_argument("--repositories", action="store_true", help="one line for each")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    say = program.Sayer("audit", as_json=given.json)
    try:
        report = audit(
            open_store(given.storage),
            SystemClock(),
            ttl=given.ttl,
            with_repositories=given.repositories,
            progress=say.progress,
        )
    except StorageError as error:
        sys.stderr.write(program.printable(f"pullthrough audit: {error.message}") + "\n")
        return 2
    say.clear()
    if given.json:
        document = {"version": VERSION, "storage": given.storage, **report}
        sys.stdout.write(json.dumps(program.cleaned(document)) + "\n")
    else:
        sys.stdout.write(program.printable(_text(report)))
    is_malformed = report["state"]["status"] not in {"none", "whole"}
    return 1 if report["leaks"] or is_malformed else 0


def _text(report: Mapping[str, Any]) -> str:
    status, size = report["state"], program.size
    lines = [
        f"{report['artifacts']} artifacts, {report['covered']} covered by the TTL state"
        f" (state file: {status['status']}, {status['entries']} entries)",
        f"{report['blobs']} blobs, {size(report['bytes'])};"
        f" {size(report['uniqueBytes'])} of them linked, shared ones counted once",
    ]
    if report["leaks"]:
        lines += ["", f"{'LEAK':13}{'COUNT':>9} {'BYTES':>11}  WHAT, AND WHAT ENDS IT"]
    for row in report["leaks"]:
        what = EXPLANATIONS[Leak(row["class"])].what
        lines.append(
            f"{row['class']:13}{row['count']:>9} {size(row['bytes']):>11}  {what}; {row['remedy']}"
        )
        lines.append(f"{'':36}such as {row['examples'][0]}")
    if report["expiries"]:
        lines += ["", f"{'EXPIRES BEFORE':31}{'ARTIFACTS':>9} {'BYTES':>11}"]
    for row in report["expiries"]:
        lines.append(f"{row['before']:31}{row['artifacts']:>9} {size(row['bytes']):>11}")
    if report.get("repositories"):
        head = f"{'ARTIFACTS':>9}{'COVERED':>9} {'BYTES':>11} {'ITS OWN':>11}  REPOSITORY"
        lines += ["", head]
    for row in report.get("repositories", ()):
        lines.append(
            f"{row['artifacts']:>9}{row['covered']:>9} {size(row['bytes']):>11}"
            f" {size(row['ownBytes']):>11}  {row['name']}"
        )
    return "\n".join(lines) + "\n"
