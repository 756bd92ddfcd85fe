"""`pullthrough prepare`: make the storage right before a registry starts. Nobody else is on it.

The steps, in this order; killed after any of them, the next run ends the same:

1. The marker: storage of another upstream, or unmarked content, is refused (exit 3). Empty storage
   is marked.
2. Garbage collection off: the state is set aside (v3 would keep the old file, and everything in it
   would fire when collection is turned on again; 2.8 reads it: `{}`). Done.
3. The migration Job's finished state, if this start's, is renamed into place, byte for byte.
4. The state is read; a malformed one, on which the registry would crash, is copied aside, and
   renamed aside if it cannot be replaced in step 6.
5. Link directories are listed and compared *by name* with the entries. A name that is covered costs
   nothing. Any other: an emptied directory is removed, else the link is read.
6. If anything is missing, past or out of bounds, the complete state is written anew. A healthy
   state with nothing new is not touched.
7. On the start that follows a change of template: the canary.
8. start.json says what was done and what could not be.

With garbage collection already on, nothing but step 1 keeps the registry down: what cannot be done
is written to start.json and left to the keeper. Only on the first start after a migration does a
failure end the program, because there the operator can go back: while the Job's state waits to be
installed, or the last start is known to have been one without collection. A start.json that cannot
be read says neither: whoever was verified long ago must not be held down for ever by a full disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pullthrough import durations
from pullthrough.storage import (
    canary,
    expiry,
    inventory,
    layout,
    marker,
    program,
    state,
    statefile,
)
from pullthrough.storage.errors import (
    StateMalformed,
    StorageError,
    StorageFull,
    StorageNotWritable,
    StorageUnreadable,
)
from pullthrough.storage.inventory import LinkStatus
from pullthrough.storage.opening import open_store
from pullthrough.storage.store import Clock, Store, SystemClock, replace
from pullthrough.storage.survey import Leak, Survey, read_artifacts

CLOCK_TOLERANCE = 300 * state.SECOND
"""A clock further behind the state file than this is waited for (a node without time sync yet)."""
CLOCK_PATIENCE = 60 * state.SECOND
JOB_OUTPUT_AGE = 3600 * state.SECOND
"""With collection off, a Job's output younger than this is left for the roll that it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What this start is to be. Spans in nanoseconds; `spread` None = from how much there is."""

    series: str
    gc: str
    ttl: int
    host: str
    template: str
    spread: int | None = None
    migration: str | None = None
    adopt_unmarked: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """One run: where it works and what it has to say at its end."""

    store: Store
    clock: Clock
    options: Options
    must_succeed: bool
    problems: list[str] = field(default_factory=list)
    uncovered: int = 0
    found: Survey = field(default_factory=Survey)
    listing_failed: bool = False
    is_malformed: bool = False
    """The state file is one that a registry crashes on, and still lies in its place."""
    canaries: list[str] = field(default_factory=list)

    def complain(self, error: StorageError) -> None:
        """Remember what could not be done; end here where the operator can still go back."""
        if self.must_succeed:
            raise error
        if len(self.problems) < 3 and error.message not in self.problems:
            self.problems.append(error.message)


def prepare(store: Store, clock: Clock, options: Options) -> Mapping[str, Any]:
    """Do all steps; returns the termination message's fields.

    Raises StorageBelongsToOtherUpstream and StorageUnmarked always; other StorageErrors only where
    the marker cannot be read or written, or on the first start after a migration.
    """
    if not marker.check(store, options.host, adopt_unmarked=options.adopt_unmarked):
        marker.mark(store, options.host)
    try:
        before = marker.read_start(store)
    except StorageUnreadable:
        before = None
    is_on = options.gc == "Enabled"
    run = Run(
        store=store,
        clock=clock,
        options=options,
        must_succeed=is_on and _is_first_after_migration(store, before, options.migration),
    )
    planted: str | None = None
    entries: Mapping[str, state.Entry] = {}
    added = 0
    if is_on:
        schedule, planted = _cover(run, before)
        entries, added = schedule.entries, schedule.added
    else:
        _retire(run)
    now = clock.now()
    start = marker.Start(
        template=options.template,
        series=options.series,
        gc=options.gc,
        ttl=durations.format_go_ns(options.ttl),
        time=state.format_time(now),
        canary=planted,
        uncovered=run.uncovered,
        problem="; ".join(run.problems) or None,
        migration=options.migration,
    )
    _attempt(run, lambda: marker.write_start(store, start))
    try:
        state_facts = store.facts(layout.STATE)
    except StorageUnreadable:
        state_facts = None
    return {
        "entries": len(entries),
        "artifacts": len(run.found.artifacts),
        "added": added,
        "leaks": {leak.value: count for leak, count in run.found.leaks.items()},
        "collectedBy": state.format_time(max((e.expiry for e in entries.values()), default=now)),
        "stateBytes": state_facts.size if state_facts else 0,
        "uncovered": run.uncovered,
        "problem": start.problem,
    }


def _is_first_after_migration(
    store: Store, before: marker.Start | None, migration: str | None
) -> bool:
    """Whether the operator can still go back; see the module's docstring."""
    if migration is None or (before is not None and before.gc == "Enabled"):
        return False
    if before is not None and before.gc == "Disabled":
        return True
    try:
        return store.facts(layout.next_state_path(migration)) is not None
    except StorageUnreadable:
        return False


def _trusted_now(run: Run) -> int:
    """The time, never before the state file's: entries must not look further ahead than they are.
    A clock far behind is given a minute to be set."""
    try:
        facts = run.store.facts(layout.STATE)
    except StorageUnreadable:
        facts = None
    now = run.clock.now()
    if facts is None:
        return now
    waited = 0
    while facts.mtime - now > CLOCK_TOLERANCE and waited < CLOCK_PATIENCE:
        run.clock.sleep(1)
        waited += state.SECOND
        now = run.clock.now()
    return max(now, facts.mtime)


def _retire(run: Run) -> None:
    """Garbage collection off: no entry may be left that fires when it is turned on again."""
    store = run.store
    _clear_aside(run, older_than=run.clock.now() - JOB_OUTPUT_AGE)
    if run.options.series == "v2":
        try:
            if store.read(layout.STATE, len(state.EMPTY) + 1) != state.EMPTY:
                replace(store, layout.STATE, state.EMPTY)
            return
        except StorageError as error:
            run.complain(error)
    if not _attempt(run, lambda: _remove(store, layout.STATE)):
        _attempt(run, lambda: statefile.set_aside(store))


def _cover(run: Run, before: marker.Start | None) -> tuple[expiry.Schedule, str | None]:
    store, options = run.store, run.options
    job_state = layout.next_state_path(options.migration) if options.migration else None
    is_installed = (
        before is not None and before.gc == "Enabled" and before.migration == options.migration
    )
    if job_state is not None and not is_installed:
        # Once: a Job's pod that was started twice may leave it again, older than what is there.
        _attempt(run, lambda: _install(store, job_state))
    _clear_aside(run, older_than=None)
    # After the Job's file is in place: its time counts too, and its entries must be kept as they are.
    now = _trusted_now(run)
    current = _load_or_set_aside(run)
    known = current.entries if current is not None else {}
    _compare(run, known)
    schedule = _schedule(run, before, known, now)
    is_new_template = before is None or before.template != options.template
    planted = before.canary if before is not None and not is_new_template else None
    entries = dict(schedule.entries)
    if run.listing_failed:
        # What was not seen is not gone: its entries stay.
        entries = {**known, **entries}
    seed = options.migration or options.template
    canary_is_due = False
    if is_new_template:
        planted = canary.artifact(seed).digest
        canary_is_due = canary.key(seed) not in known
        entries[canary.key(seed)] = known.get(canary.key(seed), canary.entry(now))
    elif planted is not None and layout.key(canary.REPOSITORY, planted) in known:
        key = layout.key(canary.REPOSITORY, planted)
        entries[key] = known[key]
    has_odd_entries = current is not None and bool(current.odd)
    if schedule.changed or canary_is_due or has_odd_entries or run.is_malformed:
        _write_state(run, state.format(entries), schedule.added)
    for digest in run.canaries:
        if digest != planted:
            _attempt(run, partial(canary.uproot, store, digest))
    if is_new_template and not _attempt(run, lambda: canary.plant(store, seed)):
        planted = None
    return schedule, planted


def _install(store: Store, job_state: str) -> None:
    """Rename the Job's state into place if it is there and whole; its bytes are not touched."""
    try:
        if statefile.load(store, job_state) is None:
            return
    except StateMalformed:
        return
    store.rename(job_state, layout.STATE)
    store.sync_directory("")


def _load_or_set_aside(run: Run) -> state.State | None:
    try:
        return statefile.load(run.store)
    except StateMalformed:
        run.is_malformed = True
        statefile.copy_aside(run.store)
    except StorageUnreadable as error:
        run.complain(error)
        _attempt(run, lambda: statefile.set_aside(run.store))
    return None


def _compare(run: Run, known: Mapping[str, state.Entry]) -> None:
    """Step 5: fill run.found with what must be covered."""
    found = run.found
    blobs = inventory.Blobs(run.store)

    def listing_failed(error: StorageUnreadable) -> None:
        run.listing_failed = True
        run.complain(error)

    for directory in inventory.link_directories(run.store, listing_failed):
        if directory.repository == canary.REPOSITORY:
            run.canaries += [f"{directory.algorithm}:{name}" for name in directory.names]
            continue
        prefix, kind = f"{directory.repository}@{directory.algorithm}:", directory.kind
        unknown = []
        for name in directory.names:
            key = prefix + name
            entry = known.get(key)
            if entry is None or entry[1] is not kind:
                unknown.append(name)
            elif key in found.artifacts:
                found.add(key, kind)
            else:
                found.artifacts[key] = kind
        if unknown:
            _look_closer(run, directory, unknown, blobs)


def _look_closer(
    run: Run, directory: inventory.LinkDirectory, names: list[str], blobs: inventory.Blobs
) -> None:
    """Names that no entry covers: prune what is emptied, read the others, remove what is bad."""
    store, found = run.store, run.found
    left = []
    for name in names:
        try:
            if store.rmdir(f"{directory.path}/{name}"):
                found.note(Leak.EMPTIED, name)
            else:
                left.append(name)
        except StorageNotWritable as error:
            run.complain(error)
            left.append(name)
    for link in inventory.read_links(store, directory, left):
        path = f"{directory.path}/{link.name}"
        try:
            if link.error is not None:
                raise link.error
            _settle(run, directory, link, path, blobs)
        except StorageUnreadable as error:
            run.uncovered += 1
            run.complain(error)


def _settle(
    run: Run,
    directory: inventory.LinkDirectory,
    link: inventory.Link,
    path: str,
    blobs: inventory.Blobs,
) -> None:
    store, found = run.store, run.found
    is_served = bool(link.target) and blobs.has(link.target)
    if link.status is LinkStatus.GOOD and is_served:
        if directory.is_schedulable:
            found.add(layout.key(directory.repository, link.target), directory.kind)
        else:
            # No entry could ever fire for such a name; the keeper's backstop has it.
            run.uncovered += 1
            found.note(Leak.BAD_NAME, path)
        return
    if link.status is LinkStatus.GONE:
        found.note(Leak.TEMPORARY, path)
        for name in store.names(path) or []:
            if name.endswith(layout.TEMPORARY):
                _attempt(run, partial(_remove, store, f"{path}/{name}"))
        _attempt(run, lambda: _remove_directory(store, path))
        return
    if link.status is LinkStatus.ALIAS and is_served and directory.is_schedulable:
        found.note(Leak.ALIAS, path)
        canonical = layout.Artifact(directory.repository, link.target, directory.kind)
        canonical_path = layout.link_path(canonical)
        if store.facts(canonical_path) is None and not _attempt(
            run, lambda: replace(store, canonical_path, link.target.encode())
        ):
            run.uncovered += 1
            return
        found.add(layout.key(directory.repository, link.target), directory.kind)
    else:
        found.note(Leak.DANGLING if link.target else Leak.BAD_LINK, path)
    _attempt(run, lambda: _remove_link(store, path))


def _schedule(
    run: Run, before: marker.Start | None, known: Mapping[str, state.Entry], now: int
) -> expiry.Schedule:
    options, found = run.options, run.found
    is_other_ttl = (
        before is not None
        and before.gc == "Enabled"
        and before.ttl != durations.format_go_ns(options.ttl)
    )
    spread = (
        expiry.default_spread(len(found.artifacts), options.ttl)
        if options.spread is None
        else expiry.clamp_spread(options.spread, options.ttl)
    )
    rules = expiry.Rules(
        now=now,
        ttl=options.ttl,
        spread=spread,
        link_times=_link_times(run.store, found) if is_other_ttl else None,
    )
    return expiry.schedule(found.artifacts, known, rules, either_kind=found.either_kind)


def _link_times(store: Store, found: Survey) -> dict[str, int]:
    times = {}
    for key, kind in found.artifacts.items():
        repository, _, digest = key.rpartition("@")
        with contextlib.suppress(StorageUnreadable):
            facts = store.facts(layout.link_path(layout.Artifact(repository, digest, kind)))
            if facts is not None:
                times[key] = facts.mtime
    return times


def _write_state(run: Run, content: bytes, added: int) -> None:
    try:
        try:
            replace(run.store, layout.STATE, content)
        except StorageFull:
            relieve(run.store)
            replace(run.store, layout.STATE, content)
    except StorageError as error:
        run.uncovered += added
        run.complain(error)
        if run.is_malformed:
            _attempt(run, lambda: statefile.set_aside(run.store))


def relieve(store: Store) -> None:
    """Make space on a full disk without touching what can be served: files left aside, uploads that
    nobody can resume, data that no link leads to. Only while no registry runs.

    Where anything cannot be read, no data is removed; errors are not raised.
    """
    with contextlib.suppress(StorageError):
        for name in store.names("") or []:
            is_aside = name.startswith(layout.STATE) and name.endswith(layout.TEMPORARY)
            if is_aside or name.startswith(layout.NEXT_STATE_PREFIX):
                store.unlink(name)
        store.unlink(statefile.ASIDE)
    with contextlib.suppress(StorageError):
        for repository in inventory.repositories(store):
            uploads = f"{layout.REPOSITORIES}/{repository}/{layout.UPLOADS}"
            for upload in store.names(uploads) or []:
                for name in store.names(f"{uploads}/{upload}") or []:
                    store.unlink(f"{uploads}/{upload}/{name}")
                store.rmdir(f"{uploads}/{upload}")
    with contextlib.suppress(StorageError):
        found = read_artifacts(store)
        linked = found.linked | found.canaries
        for digest in list(inventory.blob_digests(store)):
            if digest not in linked:
                store.unlink(layout.blob_path(digest))
                store.rmdir(layout.blob_directory(digest))


def _clear_aside(run: Run, *, older_than: int | None) -> None:
    """Remove what killed writers and finished Jobs left; with `older_than` only what is older."""
    store = run.store
    try:
        at_root = [
            name
            for name in store.names("") or []
            if name.startswith(layout.NEXT_STATE_PREFIX)
            or (name.startswith(layout.STATE) and name.endswith(layout.TEMPORARY))
        ]
        ours = [
            f"{layout.OURS}/{name}"
            for name in store.names(layout.OURS) or []
            if name.endswith(layout.TEMPORARY)
        ]
        for path in at_root + ours:
            facts = store.facts(path)
            is_old = older_than is None or (facts is not None and facts.mtime < older_than)
            if is_old:
                store.unlink(path)
    except StorageError as error:
        run.complain(error)


def _remove(store: Store, path: str) -> None:
    if store.unlink(path):
        store.sync_directory(path.rpartition("/")[0])


def _remove_directory(store: Store, path: str) -> None:
    store.rmdir(path)


def _remove_link(store: Store, path: str) -> None:
    store.unlink(f"{path}/{layout.LINK}")
    store.rmdir(path)


def _attempt(run: Run, step: Callable[[], None]) -> bool:
    """Do a step; where it fails, remember why. Returns whether it was done."""
    try:
        step()
    except StorageError as error:
        run.complain(error)
        return False
    return True


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 the registry may start, 1 not, 2 usage, 3 other upstream."""
    program.short_lived()
    parser = program.parser("prepare", "Make the storage right before a registry starts.")
    parser.add_argument("--series", required=True, choices=["v3", "v2"])
    parser.add_argument("--gc", required=True, choices=["Enabled", "Disabled"])
    parser.add_argument("--ttl", required=True, type=program.ttl, metavar="DURATION")
    parser.add_argument("--spread", type=program.duration, metavar="DURATION")
    parser.add_argument("--upstream-host", required=True, metavar="HOST")
    parser.add_argument("--template", required=True, metavar="ID")
    parser.add_argument("--migration", metavar="UID", help="the Job whose state is to be installed")
    parser.add_argument("--adopt-unmarked", action="store_true")
    parser.add_argument("--termination-message", metavar="FILE")
    given = parser.parse_args(argv)
    options = Options(
        series=given.series,
        gc=given.gc,
        ttl=given.ttl,
        host=given.upstream_host,
        template=given.template,
        spread=given.spread,
        migration=given.migration or None,
        adopt_unmarked=given.adopt_unmarked,
    )
    return program.finish(
        lambda: prepare(open_store(given.storage), SystemClock(), options),
        given.termination_message,
    )
