"""Everything on a storage, read: what must be covered, and what leaks in which way.

Every link is opened. `artifacts` is the set that a scheduler can act on: on a fresh cache it is
exactly the registry's own entries. Links whose data is missing, whose content is another digest or
garbage, and repositories whose names no entry can carry, are counted as leaks instead.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from pullthrough.storage import canary, inventory, layout
from pullthrough.storage.inventory import LinkStatus
from pullthrough.storage.state import Entry
from pullthrough.storage.store import Store

EXAMPLES = 5
"""How many of each leak are named."""
EMPTY_DIGESTS = frozenset(
    {
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha384:38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da"
        "274edebfe76f65fbd51ad2f14898b95b",
        "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
        "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
    }
)
"""The digests of nothing: the only blobs that may have no bytes."""


class Leak(enum.Enum):
    """A way in which something stays for ever, or can never be served."""

    UNCOVERED = "uncovered"
    """An artifact without an entry: it is never collected."""
    BEYOND = "beyond"
    """An entry later than now + ttl."""
    BAD_NAME = "badName"
    """A link in a directory that is no repository name: no entry can fire for it."""
    BAD_LINK = "badLink"
    """An empty or garbage link: requests fail, `registry garbage-collect` aborts."""
    ALIAS = "alias"
    """A link to the same blob by another algorithm's digest."""
    DANGLING = "dangling"
    """A link whose data is gone."""
    EMPTIED = "emptied"
    """A link directory without a link, 4 KiB each."""
    ORPHAN = "orphan"
    """Data (a payload, mostly) that no link leads to."""
    TORN = "torn"
    """Data of no bytes."""
    DEAD_TAG = "deadTag"
    """A tag whose manifest is gone."""
    TEMPORARY = "temporary"
    """A `*.tmp` file beside the state, or in a link directory without a link."""


@dataclass(slots=True, kw_only=True)
class Survey:
    """What was found. `artifacts` is key -> kind; `either_kind` keys linked as both kinds."""

    artifacts: dict[str, layout.Kind] = field(default_factory=dict)
    either_kind: set[str] = field(default_factory=set)
    linked: set[str] = field(default_factory=set)
    """Digests that some link leads to, dangling or not."""
    canaries: set[str] = field(default_factory=set)
    """Digests of canaries: they are ours and count nowhere."""
    leaks: dict[Leak, int] = field(default_factory=dict)
    examples: dict[Leak, list[str]] = field(default_factory=dict)
    blobs: int = 0
    bytes: int = 0

    def note(self, leak: Leak, what: str) -> None:
        """Count one leak and remember the first few by name."""
        self.leaks[leak] = self.leaks.get(leak, 0) + 1
        named = self.examples.setdefault(leak, [])
        if len(named) < EXAMPLES:
            named.append(what)

    def add(self, key: str, kind: layout.Kind) -> None:
        """One more artifact; linked as both kinds it is a blob, whose expiry takes the data too."""
        known = self.artifacts.get(key)
        if known is None:
            self.artifacts[key] = kind
        elif known is not kind:
            self.either_kind.add(key)
            self.artifacts[key] = layout.Kind.BLOB


def read_artifacts(store: Store) -> Survey:
    """Open every link; raises StorageUnreadable at the first that cannot be read."""
    survey = Survey()
    artifacts, linked = survey.artifacts, survey.linked
    present = frozenset(inventory.blob_digests(store))
    for directory in inventory.link_directories(store):
        if directory.repository == canary.REPOSITORY:
            survey.canaries.update(f"{directory.algorithm}:{name}" for name in directory.names)
            continue
        is_schedulable = directory.is_schedulable
        repository, kind, algorithm = directory.repository, directory.kind, directory.algorithm
        contents = store.read_each(
            directory.path, directory.names, layout.LINK, layout.LONGEST_LINK + 1
        )
        for name, content in contents:
            digest = f"{algorithm}:{name}"
            # All but a few of 100,000 links are like this; whatever is odd is looked at in peace.
            if is_schedulable and digest in present and content == digest.encode():
                linked.add(digest)
                key = f"{repository}@{digest}"
                if key in artifacts:
                    survey.add(key, kind)
                else:
                    artifacts[key] = kind
                continue
            link = inventory.classify(algorithm, name, content)
            if link.error is not None:
                raise link.error
            _note_odd_link(store, survey, directory, link, present)
    return survey


def _note_odd_link(
    store: Store,
    survey: Survey,
    directory: inventory.LinkDirectory,
    link: inventory.Link,
    present: frozenset[str],
) -> None:
    path = f"{directory.path}/{link.name}"
    if link.target:
        survey.linked.add(link.target)
    match link.status:
        case LinkStatus.GONE:
            leftovers = store.names(path)
            if leftovers:
                survey.note(Leak.TEMPORARY, f"{path}/{leftovers[0]}")
            elif leftovers is not None:
                survey.note(Leak.EMPTIED, path)
        case LinkStatus.BAD:
            survey.note(Leak.BAD_LINK, path)
        case _ if not directory.is_schedulable:
            survey.note(Leak.BAD_NAME, path)
        case _ if link.target not in present:
            survey.note(Leak.DANGLING, path)
        case _:
            # Covered through the digest that the data is stored under, whose link `prepare` makes
            # if it is missing; the alias itself dangles from its expiry on.
            survey.note(Leak.ALIAS, path)
            survey.add(layout.key(directory.repository, link.target), directory.kind)


def read_data(store: Store, survey: Survey) -> None:
    """Sizes of all blobs, and which no link leads to. Raises StorageUnreadable."""
    for digest in inventory.blob_digests(store):
        if digest in survey.canaries:
            continue
        path = layout.blob_path(digest)
        facts = store.facts(path)
        if facts is None:
            survey.note(Leak.EMPTIED, layout.blob_directory(digest))
            continue
        survey.blobs += 1
        survey.bytes += facts.size
        if digest not in survey.linked:
            survey.note(Leak.ORPHAN, path)
        elif not facts.size and digest not in EMPTY_DIGESTS:
            survey.note(Leak.TORN, path)


def read_tags(store: Store, survey: Survey) -> None:
    """Tags that point at nothing, and files left aside. Raises StorageUnreadable."""
    for repository in inventory.repositories(store):
        base = f"{layout.REPOSITORIES}/{repository}/{layout.TAGS}"
        names = store.names(base) or []
        for tag, content in store.read_each(base, names, "current/link", layout.LONGEST_LINK + 1):
            if isinstance(content, Exception):
                raise content
            target = (content or b"").decode("ascii", "replace")
            if content is not None and layout.key(repository, target) not in survey.artifacts:
                survey.note(Leak.DEAD_TAG, layout.tag_link_path(repository, tag))
    for name in store.names("") or []:
        if name.startswith(layout.STATE) and name.endswith(layout.TEMPORARY):
            survey.note(Leak.TEMPORARY, name)


def note_uncovered(survey: Survey, entries: Mapping[str, Entry], latest: int | None) -> None:
    """Artifacts that no entry covers, and entries later than `latest` (now + ttl), if given."""
    for key, kind in survey.artifacts.items():
        entry = entries.get(key)
        if entry is None or (entry.kind is not kind and key not in survey.either_kind):
            survey.note(Leak.UNCOVERED, key)
        elif latest is not None and entry.expiry > latest:
            survey.note(Leak.BEYOND, key)
