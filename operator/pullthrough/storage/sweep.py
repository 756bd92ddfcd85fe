"""`pullthrough sweep`: remove what nothing can reach. Never an artifact that a pull could get.

Offline (a stopped registry), exactly: the whole storage is read, the steps are planned, and only
then is anything changed. In this order, so that killed after any step the next run ends the same:

1. An alias (a link by sha512 to data stored by sha256) whose canonical link is missing gets one.
2. Links that lead nowhere: bad, dangling, alias, torn data, names that no pull can ask for.
3. Tag links whose manifest is gone, uploads, temporary files.
4. Data that no link leads to.
5. Emptied directories.

Online (beside a serving registry), with the keeper's own code and by its rules: one named file at a
time, seen twice unchanged, the link first and the data in a later pass, never a directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pullthrough.storage import layout, leftovers, program, quiet, steps
from pullthrough.storage.layout import Artifact, Kind
from pullthrough.storage.opening import open_store
from pullthrough.storage.state import SECOND
from pullthrough.storage.steps import Action, Step
from pullthrough.storage.store import Clock, Store, SystemClock
from pullthrough.storage.survey import Leak, Progress, Survey

MINIMUM_AGE = 3600 * SECOND
UPLOAD_AGE = 24 * MINIMUM_AGE
DELAY = 60 * SECOND
"""What is removed online is at least so old (uploads and temporary files a day), and was seen so
long before; younger may be a write in progress."""
RATE = 50.0
"""Removals per second online."""
PURGED = "purged"
"""Why a step is done that no leak asks for."""
PASSES = 6
"""Bad links, then what hung on them, then its data, each seen twice: that is the end of it."""

_LINK_LEAKS = frozenset({Leak.BAD_LINK, Leak.BAD_NAME, Leak.DANGLING, Leak.ALIAS})
_FILE_LEAKS = frozenset({Leak.DEAD_TAG, Leak.TEMPORARY, Leak.UPLOAD})


def plan(store: Store, progress: Progress | None = None) -> list[Step]:
    """All steps of an offline sweep. Reads everything; raises StorageUnreadable."""
    return planned(leftovers.read_all(store, Survey(findings=[]), progress))


def planned(found: Survey, without: Sequence[str] = (), tags: Collection[str] = ()) -> list[Step]:
    """The steps that end every finding; pure. What is to go though it could be served: artifacts
    (their links in the order given) and tag links."""
    findings = found.findings or []
    torn = {finding.digest for finding in findings if finding.leak is Leak.TORN}
    purged = dict.fromkeys(key for key in without if key in found.artifacts)
    gone = purged | dict.fromkeys(
        key
        for key in found.artifacts
        if (digest := key[key.rindex("@") + 1 :]) in torn or digest not in found.sizes
    )
    kept = [(key, kind) for key, kind in found.artifacts.items() if key not in gone]
    reachable = {key[key.rindex("@") + 1 :] for key, _ in kept} | found.canaries
    links: dict[str, Step] = {}
    made: dict[str, Step] = {}
    for leak, path, size, digest in findings:
        if leak in _LINK_LEAKS:
            link = f"{path}/{layout.LINK}"
            links[link] = Step(Action.UNLINK, link, leak.value, size)
            canonical = _canonical(path, digest) if leak is Leak.ALIAS else None
            if canonical is not None and layout.key(canonical.repository, digest) not in gone:
                target = layout.link_path(canonical)
                made[target] = Step(Action.LINK, target, leak.value, 0, digest)
    for key in gone:
        repository, _, digest = key.rpartition("@")
        for kind in Kind:
            link = layout.link_path(Artifact(repository, digest, kind))
            if kind is found.artifacts[key] or key in found.either_kind:
                why = PURGED if key in purged else Leak.TORN.value
                links.setdefault(link, Step(Action.UNLINK, link, why))
    for path, key in found.tags:
        if key in gone or path in tags:
            why = PURGED if key in purged or path in tags else Leak.DEAD_TAG.value
            links[path] = Step(Action.UNLINK, path, why)
    files = [
        Step(Action.UNLINK, path, leak.value, size)
        for leak, path, size, _ in findings
        if leak in _FILE_LEAKS
    ]
    classes = {finding.digest: finding.leak for finding in findings if finding.digest}
    by_purge = {key[key.rindex("@") + 1 :] for key in purged}
    data = [
        Step(
            Action.UNLINK,
            layout.blob_path(digest),
            PURGED if digest in by_purge else classes.get(digest, Leak.ORPHAN).value,
            size,
            digest,
        )
        for digest, size in found.sizes.items()
        if digest not in reachable
    ]
    emptied = [
        Step(Action.RMDIR, path, leak.value, size)
        for leak, path, size, _ in findings
        if leak is Leak.EMPTIED
    ]
    return [*made.values(), *links.values(), *files, *data, *emptied]


def _canonical(path: str, digest: str) -> Artifact | None:
    """The artifact that an alias stands for: the link by the digest that its data is stored under."""
    alias = layout.parse_link_path(f"{path}/{layout.LINK}")
    return None if alias is None else alias._replace(digest=digest)


def offline(
    store: Store, clock: Clock, say: program.Sayer, *, dry_run: bool = False
) -> Mapping[str, Any]:
    """Plan, say so, and do it. Raises StorageUnreadable and StorageInUse with everything as it was;
    StorageNotWritable where a removal was refused, and a new run then does the rest."""
    first = quiet.first_look(store, clock)
    todo = [step for step in plan(store, say.progress) if not is_made(store, step)]
    say.before(steps.summary(todo), dry_run=dry_run)
    if dry_run:
        return {"removed": {}, "bytes": 0, "links": 0, "changed": False, "dryRun": True}
    quiet.check(store, first)
    done = steps.perform(store, todo, say.progress)
    done += steps.prune(store)
    return outcome(done)


def is_made(store: Store, step: Step) -> bool:
    """Whether a link that an alias stands for is there already."""
    return step.action is Action.LINK and store.facts(step.path) is not None


def outcome(done: list[Step]) -> Mapping[str, Any]:
    """What was done, as fields."""
    return {
        "removed": steps.summary(done),
        "bytes": sum(step.size for step in done),
        "links": sum(step.action is Action.LINK for step in done),
        "changed": bool(done),
        "dryRun": False,
    }


def online(
    store: Store,
    clock: Clock,
    say: program.Sayer,
    *,
    minimum_age: int = MINIMUM_AGE,
    upload_age: int = UPLOAD_AGE,
    delay: int = DELAY,
    rate: float = RATE,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    """Walk, wait, walk again and remove what was the same both times, until nothing more is due.

    Spans in nanoseconds. Raises StorageUnreadable, StorageNotWritable.
    """
    from pullthrough.storage.keeper import survey, sweep

    ages = sweep.Ages(minimum=minimum_age, upload=upload_age, delay=delay)
    memory: dict[str, sweep.Seen] = {}
    done: list[Step] = []
    for number in range(PASSES):
        found = survey.look(store, deep=True, canary_digest=canary_digest(store))
        now = clock.now()
        old = [
            suspect
            for suspect in found.suspects
            if now - suspect.youngest >= sweep.minimum_age(suspect.leak, ages)
        ]
        if number == 0:
            will = [Step(Action.UNLINK, s.path, name_of(s.leak), s.facts.size) for s in old]
            say.before(steps.summary(will), dry_run=dry_run)
        if dry_run or not old:
            break
        decision = sweep.decide(found.suspects, memory, now, ages)
        memory = decision.memory
        done += remove(store, clock, decision.due, rate)
        # What a removed link led to is seen for the first time in the next walk.
        is_new = any(memory[suspect.path].since == now for suspect in old)
        if number + 1 == PASSES or not (decision.due or is_new):
            break
        clock.sleep(delay / SECOND)
    return {**outcome(done), "dryRun": dry_run}


def remove(store: Store, clock: Clock, due: Any, rate: float) -> list[Step]:
    """The keeper's removal of suspects, one by one at a rate; returns what went."""
    from pullthrough.storage.keeper import sweep

    repositories = sweep.Repositories(store, clock)
    done = []
    for suspect in due:
        removed = sweep.remove(store, suspect, repositories)
        if removed is not None:
            why = name_of(removed.leak)
            done.append(Step(Action.UNLINK, suspect.path, why, removed.bytes, suspect.digest))
            clock.sleep(1 / rate)
    return done


def canary_digest(store: Store) -> str | None:
    """Of the start that is running, if `prepare` made one: it is the registry's to delete."""
    from pullthrough.storage import marker

    start = marker.read_start(store)
    return None if start is None else start.canary


def name_of(leak: Any) -> str:
    """The keeper's classes by the names that all other programs use."""
    others = {"bad": Leak.BAD_LINK, "tag": Leak.DEAD_TAG}
    known = others.get(leak.value)
    return str(leak.value) if known is None else known.value


def minimum_age(text: str) -> int:
    """The option: at least an hour, the age below which a file may be in use."""
    age = program.duration(text)
    if age < MINIMUM_AGE:
        msg = f"{text} is less than 1h: what is younger may be a write in progress"
        raise argparse.ArgumentTypeError(msg)
    return age


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 done, 1 failed with a remedy, 2 usage."""
    program.short_lived()
    parser = program.parser("sweep", "Remove what nothing on a registry's storage can reach.")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    parser.add_argument("--online", action="store_true", help="beside a serving registry")
    parser.add_argument("--min-age", type=minimum_age, metavar="DURATION", help="with --online")
    given = parser.parse_args(argv)
    if given.min_age is not None and not given.online:
        parser.error("--min-age goes with --online")
    say = program.Sayer("sweep", as_json=given.json)

    def work() -> Mapping[str, Any]:
        store, clock = say.opened(open_store(given.storage)), SystemClock()
        if not given.online:
            return offline(store, clock, say, dry_run=given.dry_run)
        age = given.min_age or MINIMUM_AGE
        return online(
            store,
            clock,
            say,
            minimum_age=age,
            upload_age=max(age, UPLOAD_AGE),
            dry_run=given.dry_run,
        )

    return say.run(work)
