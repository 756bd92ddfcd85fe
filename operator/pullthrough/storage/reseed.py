"""`pullthrough reseed`: rebuild the TTL state of a *stopped* registry from what lies on its storage.

For anybody with a plain registry whose cache was filled while expiry was off: the registry reads
the state only at its start and overwrites it while it runs, so stop it first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from pullthrough.storage import expiry, layout, program, state, statefile, survey
from pullthrough.storage.errors import StateMalformed, StorageError
from pullthrough.storage.store import Clock, FileStore, Store, SystemClock, replace


def reseed(
    store: Store, clock: Clock, *, ttl: int, spread: int | None, dry_run: bool
) -> Mapping[str, Any]:
    """Read everything, write the complete state (unless dry_run); what was malformed is kept aside.

    Spans in nanoseconds. Entries that still hold keep their time. Returns counts. Raises
    StorageUnreadable, StorageNotWritable, StorageFull; the storage is then as it was.
    """
    now = clock.now()
    found = survey.read_artifacts(store)
    is_malformed = False
    try:
        current = statefile.load(store)
    except StateMalformed:
        current, is_malformed = None, True
    chosen = (
        expiry.default_spread(len(found.artifacts), ttl)
        if spread is None
        else expiry.clamp_spread(spread, ttl)
    )
    schedule = expiry.schedule(
        found.artifacts,
        current.entries if current is not None else {},
        expiry.Rules(now=now, ttl=ttl, spread=chosen),
        either_kind=found.either_kind,
    )
    content = state.format(schedule.entries)
    if not dry_run:
        statefile.clear_aside(store)
        statefile.clear_aside(store, statefile.ASIDE)
        if is_malformed:
            statefile.copy_aside(store)
        replace(store, layout.STATE, content)
    expiries = [entry.expiry for entry in schedule.entries.values()]
    return {
        "entries": len(schedule.entries),
        "added": schedule.added,
        "changed": schedule.changed,
        "malformed": is_malformed,
        "leaks": {leak.value: count for leak, count in found.leaks.items()},
        "firstExpiry": state.format_time(min(expiries)) if expiries else None,
        "collectedBy": state.format_time(max(expiries)) if expiries else None,
        "stateBytes": len(content),
        "written": not dry_run,
    }


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 done, 1 failed with a remedy, 2 usage."""
    program.short_lived()
    parser = program.parser("reseed", "Rebuild the TTL state of a stopped registry.")
    parser.add_argument("--ttl", required=True, type=program.ttl, metavar="DURATION")
    parser.add_argument("--spread", type=program.duration, metavar="DURATION")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    try:
        done = reseed(
            FileStore(given.storage),
            SystemClock(),
            ttl=given.ttl,
            spread=given.spread,
            dry_run=given.dry_run,
        )
    except StorageError as error:
        sys.stderr.write(f"pullthrough reseed: {program.printable(error.message)}\n")
        return error.exit_code
    if given.json:
        sys.stdout.write(json.dumps({"version": 1, **done}) + "\n")
        return 0
    verb = "would have" if given.dry_run else "has"
    sys.stdout.write(
        f"{layout.STATE} {verb} {done['entries']} entries, {done['added']} of them new\n"
    )
    if done["collectedBy"]:
        sys.stdout.write(f"everything is collected by {done['collectedBy']}\n")
    for leak, count in done["leaks"].items():
        sys.stdout.write(f"not covered: {count} {leak} (see `pullthrough audit`)\n")
    if not given.dry_run:
        sys.stdout.write(
            "start the registry now: with proxy.ttl and storage.delete.enabled: true\n"
        )
    return 0
