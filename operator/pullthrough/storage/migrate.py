"""`pullthrough migrate`: the migration Job. It works beside the serving registry and deletes nothing
but what earlier Jobs left.

1. The marker must name this cache's upstream. Results of other Jobs that are too old to be
   installed go: a Job whose roll never comes (an upstream that is down) is followed by another, and
   each would leave a whole state behind. Age alone decides, never which Job is the newest: one that
   was thought dead and wakes up must not take away what its successor has just finished.
2. Every link is read; anything that cannot be read ends it, with everything as it was.
3. Expiries for everything, from the switch (now) on; entries that still hold are kept.
4. What the roll would die of is refused: no space for the state, a registry memory limit that the
   state does not fit in.
5. The finished state, in the registry's own format, goes into a file under the Job's own uid. The
   state file itself belongs to the registry and is not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pullthrough.storage import canary, expiry, layout, marker, program, state, statefile, survey
from pullthrough.storage.errors import (
    MemoryLimitTooLow,
    StateMalformed,
    StorageError,
    StorageFull,
)
from pullthrough.storage.opening import open_store
from pullthrough.storage.store import Clock, Store, SystemClock, replace

BYTES_PER_ENTRY = 2458
"""2.4 KiB: a registry's memory per entry while it saves the state (measured with 500,000)."""
BYTES_PER_EXPIRY = 3686
"""3.6 KiB: on top, per entry that fires together with others."""
BYTES_OF_REGISTRY = 25 * 2**20
FRESHNESS = 3600 * state.SECOND
"""A finished Job's result is installed within this, or the ttl if that is shorter."""
STALE_MARGIN = 600 * state.SECOND
"""A roll that was decided while the result was fresh may come to `prepare` this much later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the Job is to do. Spans in nanoseconds; `spread` None = from how much there is."""

    ttl: int
    host: str
    job: str
    spread: int | None = None
    memory_limit: int | None = None
    adopt_unmarked: bool = False


def migrate(store: Store, clock: Clock, options: Options) -> Mapping[str, Any]:
    """Do all steps; returns the termination message's fields.

    Raises StorageBelongsToOtherUpstream, StorageUnmarked, StorageUnreadable, StorageNotWritable,
    StorageFull, MemoryLimitTooLow; the storage is then as it was.
    """
    marker.check(store, options.host, adopt_unmarked=options.adopt_unmarked)
    now = clock.now()
    _clear_stale(store, options, now)
    found = survey.read_artifacts(store)
    survey.read_data(store, found)
    survey.read_tags(store, found)
    try:
        current = statefile.load_serving(store, clock)
    except StateMalformed:
        # Not this Job's to repair: without entries everything gets its time from the switch.
        current = None
    known = current.entries if current is not None else {}
    survey.note_uncovered(found, known, now + options.ttl)
    spread = (
        expiry.default_spread(len(found.artifacts), options.ttl)
        if options.spread is None
        else expiry.clamp_spread(options.spread, options.ttl)
    )
    schedule = expiry.schedule(
        found.artifacts,
        known,
        expiry.Rules(now=now, ttl=options.ttl, spread=spread),
        either_kind=found.either_kind,
    )
    entries = {**schedule.entries, canary.key(options.job): canary.entry(now)}
    content = state.format(entries)
    _check_memory(entries, options.memory_limit)
    _check_space(store, content)
    target = layout.next_state_path(options.job)
    statefile.clear_aside(store, target)
    replace(store, target, content)
    return {
        "entries": len(schedule.entries),
        "artifacts": len(found.artifacts),
        "bytes": found.bytes,
        "added": schedule.added,
        "leaks": {leak.value: count for leak, count in found.leaks.items()},
        "collectedBy": state.format_time(collected_by(now, options.ttl)),
        "stateBytes": len(content),
    }


def _clear_stale(store: Store, options: Options, now: int) -> None:
    """Remove results of other Jobs that nobody will install. What refuses is left to the keeper."""
    own = layout.next_state_path(options.job)
    oldest = now - min(FRESHNESS, options.ttl) - STALE_MARGIN
    with contextlib.suppress(StorageError):
        for name in store.names("") or ():
            if not name.startswith(layout.NEXT_STATE_PREFIX) or name.startswith(own):
                continue
            facts = store.facts(name)
            if facts is None or facts.is_directory:
                continue
            if max(facts.mtime, facts.ctime) < oldest:
                store.unlink(name)


def collected_by(now: int, ttl: int) -> int:
    """When everything cached before the switch is gone, in whole seconds, rounded up."""
    return -(-(now + ttl) // state.SECOND) * state.SECOND


def memory_needed(entries: Mapping[str, state.Entry]) -> int:
    """Bytes of memory that a registry needs to live with these entries."""
    burst = expiry.densest(entries) * BYTES_PER_EXPIRY
    return BYTES_OF_REGISTRY + len(entries) * BYTES_PER_ENTRY + burst


def _check_memory(entries: Mapping[str, state.Entry], limit: int | None) -> None:
    needed = memory_needed(entries)
    if limit is not None and needed > limit:
        mebibytes = -(-needed // 2**20)
        msg = (
            f"the registry's memory limit is {limit // 2**20} MiB, and with {len(entries)} entries"
            f" it needs {mebibytes} MiB: raise spec.podTemplate.resources.limits.memory to at least"
            f" {mebibytes}Mi"
        )
        raise MemoryLimitTooLow(msg)


def _check_space(store: Store, content: bytes) -> None:
    free = store.free()
    if free < 2 * len(content):
        msg = (
            f"{free} bytes are free and the TTL state needs {2 * len(content)}: enlarge the volume"
        )
        raise StorageFull(msg)


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 done, 1 failed with a remedy, 2 usage, 3 other upstream."""
    program.short_lived()
    parser = program.parser("migrate", "Write the finished TTL state beside a serving registry.")
    parser.add_argument("--series", required=True, choices=["v3", "v2"])
    parser.add_argument("--ttl", required=True, type=program.ttl, metavar="DURATION")
    parser.add_argument("--spread", type=program.duration, metavar="DURATION")
    parser.add_argument("--id", required=True, metavar="UID", help="names the file it leaves")
    parser.add_argument("--upstream-host", required=True, metavar="HOST")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="of the registry")
    parser.add_argument("--adopt-unmarked", action="store_true")
    parser.add_argument("--termination-message", metavar="FILE")
    given = parser.parse_args(argv)
    options = Options(
        ttl=given.ttl,
        host=given.upstream_host,
        job=given.id,
        spread=given.spread,
        memory_limit=given.memory_limit,
        adopt_unmarked=given.adopt_unmarked,
    )
    return program.finish(
        lambda: migrate(open_store(given.storage), SystemClock(), options),
        given.termination_message,
    )
