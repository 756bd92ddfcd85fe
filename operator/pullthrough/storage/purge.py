"""`pullthrough purge`: remove artifacts that could be served, as DELETE on a proxy (405) cannot.

One repository, one image, as much as must become free, or all. What is removed is fetched again by
the next pull that asks for it.

Offline it is a sweep with more to remove, in the sweep's order: links, tags, data that then no link
leads to, and at last the TTL state without the entries of what is gone. Killed after any step, the
next run ends the same; but `--to-free` frees that much again, for it cannot know of the first run.
Online the state is the registry's and is left alone (an entry whose artifact is gone does nothing
but log a line); the link goes first, and the data when a walk at least a minute later finds no link
to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pullthrough.storage import layout, leftovers, program, quiet, state, statefile, steps, sweep
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.layout import Artifact, Kind
from pullthrough.storage.opening import open_store
from pullthrough.storage.state import SECOND, Entry
from pullthrough.storage.steps import Action, Step
from pullthrough.storage.store import Clock, Store, SystemClock
from pullthrough.storage.survey import LARGEST_PAYLOAD, Survey

SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9}
"""Suffixes of `--to-free`, as Kubernetes has them; none is bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image: where its repository may lie on the storage, and its tag or digest."""

    repositories: tuple[str, ...]
    tag: str | None
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Exactly one of these: what is to be removed."""

    repository: str | None = None
    image: Reference | None = None
    to_free: int | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Keys of artifacts to remove, what leads to others last, and tag links besides theirs."""

    keys: Sequence[str] = ()
    tags: Collection[str] = ()
    notes: tuple[str, ...] = ()


def choose(
    store: Store, found: Survey, entries: Mapping[str, Entry], wanted: Wanted, now: int
) -> Choice:
    """What is to go. Raises StorageUnreadable."""
    if wanted.everything:
        return Choice(keys=list(found.artifacts))
    if wanted.repository is not None:
        prefix = f"{wanted.repository}@"
        return Choice(keys=[key for key in found.artifacts if key.startswith(prefix)])
    if wanted.image is not None:
        return _image(store, found, wanted.image)
    return _to_free(store, found, entries, wanted.to_free or 0, now)


# --- one image -------------------------------------------------------------------------------------


def reference(text: str) -> Reference:
    """Read an image's name as people write it; a host and docker.io's `library/` may be left out.

    Raises argparse.ArgumentTypeError.
    """
    name, at, digest = text.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}{slash}{last}"
    host, _, rest = name.partition("/")
    names = [name]
    if rest and (host == "localhost" or "." in host or ":" in host):
        names.append(rest)
        if "/" not in rest:
            names.append(f"library/{rest}")
    elif not rest:
        names.append(f"library/{name}")
    names = [candidate for candidate in names if layout.is_repository(candidate)]
    if not names or (at and not layout.is_digest(digest)) or (colon and not tag):
        msg = f"{text!r} is not an image: write repository:tag or repository@sha256:..."
        raise argparse.ArgumentTypeError(msg)
    return Reference(
        repositories=tuple(names),
        tag=None if at else tag or "latest",
        digest=digest if at else None,
    )


def _image(store: Store, found: Survey, image: Reference) -> Choice:
    known = {key.rpartition("@")[0] for key in found.artifacts}
    repository = next((name for name in image.repositories if name in known), None)
    if repository is None:
        return Choice(notes=(f"nothing of {image.repositories[0]} is cached",))
    prefix = f"{repository}@"
    current = {
        path: key[len(prefix) :]
        for path, key in found.tags
        if key.startswith(prefix) and path.endswith(f"/current/{layout.LINK}")
    }
    path = None if image.tag is None else layout.tag_link_path(repository, image.tag)
    target = image.digest if path is None else current.get(path)
    if target is None or prefix + target not in found.artifacts:
        return Choice(notes=(f"{repository}:{image.tag or image.digest} is not cached",))
    going = _closure(store, found, repository, [target])
    others = [
        digest
        for other, digest in current.items()
        if other != path and not (path is None and digest == target)
    ]
    others += [
        digest
        for digest in _manifests(found, repository)
        if digest not in going and digest not in others
    ]
    kept = set(_closure(store, found, repository, others))
    if path is None:
        kept.discard(target)
    notes = []
    if target in kept:
        notes.append("another tag or index leads to the same manifest: only the tag is removed")
    return Choice(
        keys=[prefix + digest for digest in going if digest not in kept],
        tags=() if path is None else _tag_links(found, path),
        notes=tuple(notes),
    )


def _tag_links(found: Survey, current: str) -> frozenset[str]:
    tag = current.removesuffix(f"current/{layout.LINK}")
    return frozenset(path for path, _ in found.tags if path.startswith(tag))


def _manifests(found: Survey, repository: str) -> Iterable[str]:
    prefix = f"{repository}@"
    for key, kind in found.artifacts.items():
        if key.startswith(prefix) and (kind is Kind.MANIFEST or key in found.either_kind):
            yield key[len(prefix) :]


def _closure(store: Store, found: Survey, repository: str, roots: Iterable[str]) -> dict[str, None]:
    """All that the manifests lead to in the repository, each after what it leads to itself."""
    manifests = set(_manifests(found, repository))
    done: dict[str, None] = {}
    entered: set[str] = set()
    pending = [(root, False) for root in roots]
    while pending:
        digest, is_expanded = pending.pop()
        if is_expanded:
            done[digest] = None
        elif digest not in entered and layout.key(repository, digest) in found.artifacts:
            entered.add(digest)
            pending.append((digest, True))
            if digest in manifests:
                pending += [(child, False) for child in references(store, digest)]
    return done


def references(store: Store, digest: str) -> list[str]:
    """The digests that a manifest or index names; none if its bytes are not such a thing.

    Raises StorageUnreadable.
    """
    content = store.read(layout.blob_path(digest), LARGEST_PAYLOAD) or b""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return []
    if not isinstance(document, dict):
        return []
    parts: list[Any] = [document.get("config")]
    for name in ("manifests", "layers", "fsLayers"):
        some = document.get(name)
        parts += some if isinstance(some, list) else []
    named = [part.get("digest") or part.get("blobSum") for part in parts if isinstance(part, dict)]
    return [text for text in named if isinstance(text, str) and layout.is_digest(text)]


# --- as much as must become free -------------------------------------------------------------------


def _to_free(
    store: Store, found: Survey, entries: Mapping[str, Entry], wanted: int, now: int
) -> Choice:
    """Digests, until their bytes are enough: what nothing can reach counts first (a sweep removes
    it), then what is expired, longest ago first, then what was filled longest ago."""
    freed = sum(step.size for step in sweep.planned(found) if step.action is Action.UNLINK)
    keys_of: dict[str, list[str]] = {}
    for key in found.artifacts:
        keys_of.setdefault(key[key.rindex("@") + 1 :], []).append(key)
    ranked = []
    for keys in keys_of.values():
        times = [entries[key].expiry if key in entries else None for key in keys]
        known = [time for time in times if time is not None]
        is_expired = len(known) == len(keys) and max(known) <= now
        ranked.append((not is_expired, max(known) if is_expired else _filled(store, found, keys)))
    order = sorted(zip(ranked, keys_of, strict=True))
    chosen: list[str] = []
    for _, digest in order:
        if freed >= wanted:
            break
        chosen += keys_of[digest]
        freed += found.sizes.get(digest, 0)
    enough = freed >= wanted
    notes = () if enough else (f"there is no more than {program.size(freed)} to be freed",)
    return Choice(keys=chosen, notes=notes)


def _filled(store: Store, found: Survey, keys: Iterable[str]) -> int:
    """When a digest was last filled in any repository: a link is written at each fill."""
    times = [0]
    for key in keys:
        repository, _, digest = key.rpartition("@")
        artifact = Artifact(repository, digest, found.artifacts[key])
        facts = store.facts(layout.link_path(artifact))
        if facts is not None:
            times.append(facts.mtime)
    return max(times)


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity: `20Gi`, `500M`, `1048576`. Raises ArgumentTypeError."""
    suffix = next((suffix for suffix in SIZES if text.endswith(suffix)), "")
    number = text.removesuffix(suffix)
    if not (number.isascii() and number.isdigit()) or not int(number):
        msg = f"{text!r} is not a size: write 20Gi, 500Mi or a number of bytes"
        raise argparse.ArgumentTypeError(msg)
    return int(number) * SIZES.get(suffix, 1)


# --- doing it --------------------------------------------------------------------------------------


def offline(
    store: Store, clock: Clock, say: program.Sayer, wanted: Wanted, *, dry_run: bool = False
) -> Mapping[str, Any]:
    """Read all, plan, say so, do it. Raises StorageUnreadable and StorageInUse with everything as it
    was; StorageNotWritable, StorageFull in the middle, and a new run then does the rest."""
    first = quiet.first_look(store, clock)
    found = leftovers.read_all(store, Survey(findings=[]), say.progress)
    entries, notes = _entries(store)
    choice = choose(store, found, entries, wanted, clock.now())
    todo = sweep.planned(found, choice.keys, choice.tags)
    todo = [step for step in todo if not sweep.is_made(store, step)]
    gone = {*choice.keys}
    kept = {key: e for key, e in entries.items() if key in found.artifacts and key not in gone}
    if len(kept) < len(entries):
        step = Step(Action.WRITE, layout.STATE, sweep.PURGED, content=state.format(kept))
        emptied = [step for step in todo if step.action is Action.RMDIR]
        todo = [*(step for step in todo if step.action is not Action.RMDIR), step, *emptied]
    say.before(steps.summary(todo), dry_run=dry_run)
    notes += choice.notes
    if dry_run:
        return {**sweep.outcome([]), "dryRun": True, "entries": 0, "notes": notes}
    quiet.check(store, first)
    done = steps.perform(store, todo, say.progress)
    done += steps.prune(store)
    dropped = len(entries) - len(kept)
    return {**sweep.outcome(done), "entries": dropped, "notes": notes}


def _entries(store: Store) -> tuple[Mapping[str, Entry], tuple[str, ...]]:
    """The entries; a malformed state is not this program's to put right."""
    try:
        current = statefile.load(store)
    except StateMalformed as error:
        return {}, (error.message,)
    return ({} if current is None else current.entries), ()


def online(
    store: Store,
    clock: Clock,
    say: program.Sayer,
    wanted: Wanted,
    *,
    minimum_age: int = sweep.MINIMUM_AGE,
    delay: int = sweep.DELAY,
    rate: float = sweep.RATE,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    """Unlink the links and tags one by one, then, after the delay and a fresh walk, the data that is
    old enough. Raises StorageUnreadable, StorageNotWritable."""
    from pullthrough.storage.keeper import sweep as keeper
    from pullthrough.storage.keeper.survey import DATA_LEAKS, Leak, Suspect, look

    found = leftovers.read_all(store, Survey(findings=[]), say.progress)
    try:
        current = statefile.load_serving(store, clock)
    except StateMalformed:
        current = None
    entries = current.entries if current is not None else {}
    choice = choose(store, found, entries, wanted, clock.now())
    purged = {key[key.rindex("@") + 1 :] for key in choice.keys}
    todo = [
        step for step in sweep.planned(found, choice.keys, choice.tags) if step.why == sweep.PURGED
    ]
    say.before(steps.summary(todo), dry_run=dry_run)
    if dry_run:
        return {**sweep.outcome([]), "dryRun": True, "entries": 0, "notes": choice.notes}
    suspects = []
    for step in todo:
        facts = None if step.path.startswith(layout.BLOBS) else store.facts(step.path)
        if facts is not None:
            # As the backstop's links: looked at once more, then unlinked if unchanged.
            youngest = max(facts.mtime, facts.ctime)
            suspects.append(Suspect(Leak.EXPIRED, step.path, "", "", facts, youngest))
    done = [step._replace(why=sweep.PURGED) for step in sweep.remove(store, clock, suspects, rate)]
    ages = keeper.Ages(minimum=minimum_age, upload=sweep.UPLOAD_AGE, delay=delay)
    memory: dict[str, keeper.Seen] = {}
    left = 0
    for number in range(2 if purged else 0):
        if number:
            clock.sleep(delay / SECOND)
        walk = look(store, deep=False, canary_digest=sweep.canary_digest(store))
        data = [s for s in walk.suspects if s.leak in DATA_LEAKS and s.digest in purged]
        decision = keeper.decide(data, memory, clock.now(), ages)
        memory = decision.memory
        removed = sweep.remove(store, clock, decision.due, rate)
        done += [step._replace(why=sweep.PURGED) for step in removed]
        left = len(data) - len(removed)
    notes = choice.notes
    if left:
        notes += (f"the data of {left} is too young; the keeper or a later sweep removes it",)
    return {**sweep.outcome(done), "entries": 0, "notes": notes}


def main(argv: list[str]) -> int:
    """The command line. Exit codes: 0 done, 1 failed with a remedy, 2 usage."""
    program.short_lived()
    parser = program.parser("purge", "Remove artifacts that a registry could serve.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--repository", metavar="NAME", help="all of one repository")
    what.add_argument("--image", type=reference, metavar="REF", help="repository:tag or @digest")
    what.add_argument("--to-free", type=quantity, metavar="SIZE", help="such as 20Gi")
    what.add_argument("--all", action="store_true")
    parser.add_argument("--online", action="store_true", help="beside a serving registry")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    given = parser.parse_args(argv)
    if given.repository is not None and not layout.is_repository(given.repository):
        parser.error(f"{given.repository!r} is not a repository's name")
    wanted = Wanted(
        repository=given.repository,
        image=given.image,
        to_free=given.to_free,
        everything=given.all,
    )
    say = program.Sayer("purge", as_json=given.json)
    work = online if given.online else offline
    return say.run(
        lambda: work(
            say.opened(open_store(given.storage)),
            SystemClock(),
            say,
            wanted,
            dry_run=given.dry_run,
        )
    )
