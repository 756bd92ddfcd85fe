"""`pullthrough reseed`: rebuild the TTL state of a *stopped* registry from what lies on its storage.

For anybody with a plain registry whose cache was filled while expiry was off: the registry reads
the state only at its start and overwrites it while it runs, so stop it first.

1. A first look at the places that a running registry writes to (quiet).
2. Every link is read, the state is read, the schedule is made.
3. A second look: anything that differs ends it, with everything as it was.
4. If anything is to change, a malformed state is copied aside, and the new one replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pullthrough.storage import expiry, layout, program, quiet, state, statefile, survey
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.opening import open_store
from pullthrough.storage.store import Clock, Store, SystemClock, replace
from pullthrough.storage.survey import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a reseed will write, and what is said of it."""

    content: bytes
    is_malformed: bool
    is_needed: bool
    """Whether the file on the storage differs in anything that matters."""
    told: Mapping[str, Any]


def reseed(
    store: Store,
    clock: Clock,
    *,
    ttl: int,
    spread: int | None,
    dry_run: bool,
    before: Callable[[Mapping[str, Any]], None] = lambda _told: None,
    progress: Progress | None = None,
) -> Mapping[str, Any]:
    """Read everything, write the complete state (unless dry_run); what was malformed is kept aside.

    Spans in nanoseconds. Entries that still hold keep their time; a state that needs no change is
    not touched. `before` is told the plan. Returns counts. Raises StorageInUse, StorageUnreadable,
    StorageNotWritable, StorageFull; the storage is then as it was.
    """
    first = quiet.first_look(store, clock)
    plan = _plan(store, clock, ttl=ttl, spread=spread, progress=progress)
    before(plan.told)
    is_written = plan.is_needed and not dry_run
    if not dry_run:
        quiet.check(store, first)
    if is_written:
        statefile.clear_aside(store)
        statefile.clear_aside(store, statefile.ASIDE)
        if plan.is_malformed:
            statefile.copy_aside(store)
        replace(store, layout.STATE, plan.content)
    return {**plan.told, "written": is_written}


def _plan(
    store: Store, clock: Clock, *, ttl: int, spread: int | None, progress: Progress | None
) -> Plan:
    found = survey.read_artifacts(store, progress=progress)
    # Nobody asks here which data is linked; of a million digests it is 200 MB.
    found.linked.clear()
    now = clock.now()
    is_malformed = False
    try:
        current = statefile.load(store)
    except StateMalformed:
        current, is_malformed = None, True
    known = current.entries if current is not None else {}
    chosen = (
        expiry.default_spread(len(found.artifacts), ttl)
        if spread is None
        else expiry.clamp_spread(spread, ttl)
    )
    schedule = expiry.schedule(
        found.artifacts,
        known,
        expiry.Rules(now=now, ttl=ttl, spread=chosen),
        either_kind=found.either_kind,
    )
    content = state.format(schedule.entries)
    dropped = sum(key not in schedule.entries for key in known)
    odd = len(current.odd) if current is not None else 0
    is_needed = current is None or bool(schedule.changed or dropped or odd)
    expiries = [entry.expiry for entry in schedule.entries.values()]
    told = {
        "entries": len(schedule.entries),
        "added": schedule.added,
        "changed": schedule.changed,
        "dropped": dropped + odd,
        "malformed": is_malformed,
        "leaks": {leak.value: count for leak, count in found.leaks.items()},
        "firstExpiry": state.format_time(min(expiries)) if expiries else None,
        "collectedBy": state.format_time(max(expiries)) if expiries else None,
        "stateBytes": len(content),
    }
    return Plan(content=content, is_malformed=is_malformed, is_needed=is_needed, told=told)


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 done, 1 failed with a remedy, 2 usage."""
    program.short_lived()
    parser = program.parser("reseed", "Rebuild the TTL state of a stopped registry.")
    parser.add_argument("--ttl", required=True, type=program.ttl, metavar="DURATION")
    parser.add_argument("--spread", type=program.duration, metavar="DURATION")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be written")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    given = parser.parse_args(argv)
    say = program.Sayer("reseed", as_json=given.json)

    def before(told: Mapping[str, Any]) -> None:
        say.clear()
        if given.json:
            say.event("plan", {**told, "dryRun": given.dry_run})
            return
        verb = "would have" if given.dry_run else "is to have"
        say.say(
            f"{layout.STATE} {verb} {told['entries']} entries: {told['added']} of them new,"
            f" {told['changed']} changed; {told['dropped']} others dropped"
        )
        if told["malformed"]:
            say.say(f"the present file is malformed; a copy is kept as {statefile.ASIDE}")
        for leak, count in told["leaks"].items():
            say.say(f"not covered: {count} {leak} (see `pullthrough audit`)")

    def after(done: Mapping[str, Any]) -> None:
        if given.json:
            say.event("done", {**done, "dryRun": given.dry_run})
            return
        if given.dry_run:
            say.say("dry run: nothing was changed")
        elif not done["written"]:
            say.say(f"nothing to do: {layout.STATE} covers everything and was not touched")
        else:
            say.say(f"{layout.STATE} has {done['entries']} entries, {done['added']} of them new")
            say.say("start the registry now: with proxy.ttl and storage.delete.enabled: true")
        if done["collectedBy"]:
            say.say(f"everything is collected by {done['collectedBy']}")

    return say.run(
        lambda: reseed(
            say.opened(open_store(given.storage)),
            SystemClock(),
            ttl=given.ttl,
            spread=given.spread,
            dry_run=given.dry_run,
            before=before,
            progress=say.progress,
        ),
        after,
    )
