"""Everything on a storage, read: what must be covered, and what leaks in which way.

Every link is opened. `artifacts` is the set that a scheduler can act on: on a fresh cache it is
exactly the registry's own entries. Links whose data is missing, whose content is another digest or
garbage, and repositories whose names no entry can carry, are counted as leaks instead.

`read_artifacts`, `read_data` and `read_tags` are what a reseed or migration needs; what else can lie
there (torn payloads, uploads, leftovers) is in `leftovers`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pullthrough.storage import canary, inventory, layout
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.inventory import LinkStatus
from pullthrough.storage.state import Entry
from pullthrough.storage.store import Facts, Store

EXAMPLES = 5
"""How many of each leak are named."""
DIRECTORY = 4096
"""Bytes that a directory takes on most file systems."""
LARGEST_PAYLOAD = 4 << 20
"""Manifests are refused beyond this (v3.1.1:registry/handlers/manifests.go:26)."""
Progress = Callable[[str, int], None]
"""Told what was done, and how many more of it."""
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
    """Data that no link leads to."""
    PAYLOAD = "payload"
    """A manifest's bytes that no link leads to: the scheduler never deletes them."""
    TORN = "torn"
    """Data of no bytes, or a manifest whose bytes are not its digest's."""
    DEAD_TAG = "deadTag"
    """A tag whose manifest is gone."""
    TEMPORARY = "temporary"
    """A `*.tmp` file that a write left behind."""
    UPLOAD = "upload"
    """A fill that never ended."""
    SYMBOLIC_LINK = "symbolicLink"
    """A symbolic link: never followed, so what it leads to is not known."""
    FOREIGN = "foreign"
    """Something that no registry puts there; never removed."""


class Explanation(NamedTuple):
    """What a class of leak is and what ends it, for people."""

    what: str
    remedy: str


_RESEED = "stop the registry and run `pullthrough reseed`"
_SWEEP = "run `pullthrough sweep`"
EXPLANATIONS: dict[Leak, Explanation] = {
    Leak.UNCOVERED: Explanation("artifacts that no entry covers: they never expire", _RESEED),
    Leak.BEYOND: Explanation("entries later than now + ttl", _RESEED),
    Leak.BAD_NAME: Explanation(
        "links under a name that no pull can ask for and no entry can fire for", _SWEEP
    ),
    Leak.BAD_LINK: Explanation("empty or garbage links: requests for them fail", _SWEEP),
    Leak.ALIAS: Explanation("links by another algorithm's digest: their expiry fails", _SWEEP),
    Leak.DANGLING: Explanation("links whose data is gone", _SWEEP),
    Leak.EMPTIED: Explanation("emptied directories", "run `pullthrough sweep`, offline"),
    Leak.ORPHAN: Explanation("data that no link leads to", _SWEEP),
    Leak.PAYLOAD: Explanation("manifest payloads that no link leads to", _SWEEP),
    Leak.TORN: Explanation(
        "data of no bytes, or manifests that are not what their digest says", _SWEEP
    ),
    Leak.DEAD_TAG: Explanation("tags whose manifest is gone", _SWEEP),
    Leak.TEMPORARY: Explanation("temporary files left behind", _SWEEP),
    Leak.UPLOAD: Explanation("uploads that never ended (or go on at this moment)", _SWEEP),
    Leak.SYMBOLIC_LINK: Explanation(
        "symbolic links: never followed, and what they hide is not counted",
        "put what it leads to in its place, or mount it there",
    ),
    Leak.FOREIGN: Explanation(
        "files or directories that no registry puts there",
        "look at them and move them out of the storage; no program removes them",
    ),
}


class Finding(NamedTuple):
    """One leak: where, how many bytes its removal gives back, and the digest it is about."""

    leak: Leak
    path: str
    bytes: int = 0
    digest: str = ""


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
    leaked: dict[Leak, int] = field(default_factory=dict)
    """Bytes of each leak: what its removal gives back."""
    examples: dict[Leak, list[str]] = field(default_factory=dict)
    blobs: int = 0
    bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each blob, by digest."""
    hidden: set[str] = field(default_factory=set)
    """Digests whose data is behind a symbolic link."""
    tags: list[tuple[str, str]] = field(default_factory=list)
    """Tag links and the keys of what they lead to, if somebody wants all findings."""
    met: set[str] = field(default_factory=set)
    """Symbolic links by path."""
    findings: list[Finding] | None = None
    """Every leak that a sweep can end, if somebody wants them all."""
    is_tolerant: bool = False
    """Symbolic links are counted instead of ending it: for who only tells and never removes."""

    def note(self, leak: Leak, what: str, size: int = 0, digest: str = "") -> None:
        """Count one leak and remember the first few by name."""
        self.leaks[leak] = self.leaks.get(leak, 0) + 1
        self.leaked[leak] = self.leaked.get(leak, 0) + size
        named = self.examples.setdefault(leak, [])
        if len(named) < EXAMPLES:
            named.append(what)
        if self.findings is not None:
            self.findings.append(Finding(leak, what, size, digest))

    def cannot_read(self, error: StorageUnreadable) -> None:
        """Count a symbolic link where only telling; raise everything else."""
        path = error.symbolic_link
        if not self.is_tolerant or path is None:
            raise error
        self.note_once(Leak.SYMBOLIC_LINK, path)

    def note_once(self, leak: Leak, path: str) -> None:
        """Count what more than one walk meets."""
        if path not in self.met:
            self.met.add(path)
            self.note(leak, path)

    def add(self, key: str, kind: layout.Kind) -> None:
        """One more artifact; linked as both kinds it is a blob, whose expiry takes the data too."""
        known = self.artifacts.get(key)
        if known is None:
            self.artifacts[key] = kind
        elif known is not kind:
            self.either_kind.add(key)
            self.artifacts[key] = layout.Kind.BLOB


def read_artifacts(
    store: Store, survey: Survey | None = None, progress: Progress | None = None
) -> Survey:
    """Open every link; raises StorageUnreadable at the first that cannot be read."""
    survey = Survey() if survey is None else survey
    artifacts, linked = survey.artifacts, survey.linked
    # Each digest is one string, however many links lead to it.
    present = {digest: digest for digest in inventory.blob_digests(store, survey.cannot_read)}
    for directory in inventory.link_directories(store, survey.cannot_read):
        if progress is not None:
            progress("links read", len(directory.names))
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
                linked.add(present[digest])
                key = f"{repository}@{digest}"
                if key in artifacts:
                    survey.add(key, kind)
                else:
                    artifacts[key] = kind
                continue
            link = inventory.classify(algorithm, name, content)
            if link.error is not None:
                # Unread, it may lead anywhere; its directory's name is all there is to go by.
                survey.cannot_read(link.error)
                linked.add(digest)
                continue
            _note_odd_link(store, survey, directory, link, present)
    return survey


def _note_odd_link(
    store: Store,
    survey: Survey,
    directory: inventory.LinkDirectory,
    link: inventory.Link,
    present: Container[str],
) -> None:
    path = f"{directory.path}/{link.name}"
    if link.target:
        survey.linked.add(link.target)
    match link.status:
        case LinkStatus.GONE:
            leftovers = store.names(path)
            temporary = [name for name in leftovers or () if name.endswith(layout.TEMPORARY)]
            for name in temporary:
                note_file(store, survey, Leak.TEMPORARY, f"{path}/{name}")
            if leftovers == []:
                survey.note(Leak.EMPTIED, path, DIRECTORY)
        case LinkStatus.BAD:
            survey.note(Leak.BAD_LINK, path)
        case _ if not directory.is_schedulable:
            survey.note(Leak.BAD_NAME, path, 0, link.target)
        case _ if link.target not in present:
            survey.note(Leak.DANGLING, path, 0, link.target)
        case _:
            # Covered through the digest that the data is stored under, whose link `prepare` and
            # `sweep` make if it is missing; the alias itself dangles from its expiry on.
            survey.note(Leak.ALIAS, path, 0, link.target)
            survey.add(layout.key(directory.repository, link.target), directory.kind)


def read_data(store: Store, survey: Survey, progress: Progress | None = None) -> None:
    """Sizes of all blobs, and which no link leads to. Raises StorageUnreadable."""
    linked = survey.linked
    for directory in inventory.blob_directories(store, ignored):
        if progress is not None:
            progress("blobs read", len(directory.names))
        prefix = f"{directory.algorithm}:"
        for name, facts in store.facts_each(directory.path, directory.names, layout.DATA):
            digest = prefix + name
            # Nearly all are like this; whatever is odd is looked at in peace.
            if type(facts) is Facts and facts.size and digest in linked:
                if digest not in survey.canaries:
                    survey.blobs += 1
                    survey.bytes += facts.size
                    survey.sizes[digest] = facts.size
            elif digest not in survey.canaries:
                _note_odd_data(store, survey, digest, facts)


def _note_odd_data(
    store: Store, survey: Survey, digest: str, facts: Facts | StorageUnreadable | None
) -> None:
    path = layout.blob_path(digest)
    try:
        if isinstance(facts, StorageUnreadable):
            raise facts
        if facts is None and store.names(layout.blob_directory(digest)) != []:
            return
    except StorageUnreadable as error:
        survey.cannot_read(error)
        survey.hidden.add(digest)
        return
    if facts is None:
        survey.note(Leak.EMPTIED, layout.blob_directory(digest), DIRECTORY)
        return
    survey.blobs += 1
    survey.bytes += facts.size
    survey.sizes[digest] = facts.size
    if digest not in survey.linked:
        survey.note(_class_of_data(store, digest, facts.size), path, facts.size, digest)
    elif not facts.size and digest not in EMPTY_DIGESTS:
        survey.note(Leak.TORN, path, 0, digest)


def _class_of_data(store: Store, digest: str, size: int) -> Leak:
    """Payloads are told from layers by their bytes: nothing else on the storage says it."""
    if size > LARGEST_PAYLOAD:
        return Leak.ORPHAN
    content = store.read(layout.blob_path(digest), LARGEST_PAYLOAD) or b""
    return Leak.PAYLOAD if reads_as_manifest(content) else Leak.ORPHAN


def reads_as_manifest(content: bytes) -> bool:
    """Whether bytes, or the first of them, are a manifest's: all that ever says it."""
    return content.lstrip().startswith(b"{") and b'"schemaVersion"' in content


def note_file(store: Store, survey: Survey, leak: Leak, path: str) -> None:
    """Count a file with its bytes; one that has gone meanwhile is none. Raises StorageUnreadable."""
    try:
        facts = store.facts(path)
    except StorageUnreadable as error:
        if error.symbolic_link is None:
            raise
        # Not followed, and so it hides nothing here: the name alone says what it is.
        survey.note_once(Leak.SYMBOLIC_LINK, error.symbolic_link)
        return
    if facts is not None and facts.is_directory:
        survey.note(Leak.FOREIGN, path, DIRECTORY)
    elif facts is not None:
        survey.note(leak, path, facts.size)


def read_tags(store: Store, survey: Survey) -> None:
    """Tags that point at nothing, and files left aside. Raises StorageUnreadable."""
    for repository in inventory.repositories(store, ignored):
        base = f"{layout.REPOSITORIES}/{repository}/{layout.TAGS}"
        try:
            names = sorted(store.names(base) or [])
        except StorageUnreadable as error:
            survey.cannot_read(error)
            continue
        for tag, content in store.read_each(base, names, "current/link", layout.LONGEST_LINK + 1):
            if isinstance(content, StorageUnreadable):
                survey.cannot_read(content)
                continue
            target = (content or b"").decode("ascii", "replace")
            if content is not None:
                path, key = layout.tag_link_path(repository, tag), layout.key(repository, target)
                if key not in survey.artifacts:
                    survey.note(Leak.DEAD_TAG, path)
                elif survey.findings is not None:
                    survey.tags.append((path, key))
    for name in store.names("") or []:
        if name.startswith(layout.STATE) and name.endswith(layout.TEMPORARY):
            note_file(store, survey, Leak.TEMPORARY, name)


def ignored(error: StorageUnreadable) -> None:
    """For a second listing: the first has met the same symbolic link and said what comes of it.

    Any other error is news: what is not listed now would be taken for gone, and links to it removed.
    """
    if error.symbolic_link is None:
        raise error


def note_uncovered(survey: Survey, entries: Mapping[str, Entry], latest: int | None) -> None:
    """Artifacts that no entry covers, and entries later than `latest` (now + ttl), if given."""
    for key, kind in survey.artifacts.items():
        entry = entries.get(key)
        if entry is None or (entry.kind is not kind and key not in survey.either_kind):
            survey.note(Leak.UNCOVERED, key, 0, key[key.rindex("@") + 1 :])
        elif latest is not None and entry.expiry > latest:
            survey.note(Leak.BEYOND, key)
