"""One walk over the storage while the registry serves: what lies there, what of it looks wrong.

Reads only. Whatever vanishes during the walk was gone; a directory that cannot be read ends the
walk with StorageUnreadable, because a link that was not seen would make its data look unreachable.
One unreadable sha256 link does not: its directory's name is its digest (an alias is always a
sha512 or sha384 directory with the sha256 in it, v3.1.1:registry/storage/linkedblobstore.go:327).

What is kept of a healthy artifact is a few hashes, so that memory hardly grows with the cache: data
are listed first, then links (each is judged and forgotten), then data once more for those that no
link led to. What a registry adds in between is young or looked at again.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pullthrough.storage import canary, inventory, layout
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.inventory import LinkStatus
from pullthrough.storage.keeper.hashes import Hashes
from pullthrough.storage.layout import Artifact, Kind
from pullthrough.storage.store import Facts, Store
from pullthrough.storage.survey import EMPTY_DIGESTS, LARGEST_PAYLOAD, reads_as_manifest

TELLING = 1 << 16
"""So many of the first bytes tell a manifest."""
ALL = 1 << 62
MOST = 2000
"""Suspects of each class that the keeper remembers; the others are counted, and their turn comes when
these are gone (after a mass expiry there are 100,000)."""
EXAMPLES = 3
"""Suspects of each class that are named to people."""


class Leak(enum.Enum):
    """What is wrong with a file; the value is its class in reports and metrics."""

    BAD = "bad"
    """A link that holds no digest: requests fail for ever."""
    DANGLING = "dangling"
    """A link whose data is gone."""
    TORN = "torn"
    """A link to data of no bytes: served as an empty 200 for ever."""
    TAG = "tag"
    """A tag's link to a manifest that its repository no longer has."""
    EXPIRED = "expired"
    """A link older than the ttl that no entry covers."""
    PAYLOAD = "payload"
    """Manifest bytes that no link leads to."""
    ORPHAN = "orphan"
    """Other data that no link leads to."""
    TEMPORARY = "temporary"
    """A `*.tmp` of a write that never ended."""
    UPLOAD = "upload"
    """A file of an upload that never ended."""
    JOB = "jobState"
    """A migration Job's finished state that was never installed."""


REMEDIES: dict[Leak, str] = {
    Leak.BAD: "the keeper removes it; the next pull fetches it again",
    Leak.DANGLING: "the keeper removes it; the next pull fetches it again",
    Leak.TORN: "the keeper removes the link and then the data; the next pull fetches it again",
    Leak.TAG: "the keeper removes it",
    Leak.EXPIRED: "the keeper removes it; nothing collects it otherwise",
    Leak.PAYLOAD: "the keeper removes it: what every expired manifest leaves behind",
    Leak.ORPHAN: "the keeper removes it: no link leads to it",
    Leak.TEMPORARY: "the keeper removes it when it is old: a write that never ended",
    Leak.UPLOAD: "the keeper removes it when it is old: an upload that never ended",
    Leak.JOB: "the keeper removes it when it is old: the roll that it was for never came",
}
"""What becomes of each, for people."""


DATA_LEAKS = frozenset({Leak.PAYLOAD, Leak.ORPHAN})
UPLOAD_LEAKS = frozenset({Leak.TEMPORARY, Leak.UPLOAD})


class Suspect(NamedTuple):
    """One file that looks wrong, as it was when it was seen."""

    leak: Leak
    path: str
    digest: str
    """What it leads to or is; empty where there is none."""
    repository: str
    facts: Facts
    youngest: int
    """The youngest of all times that speak for its being in use."""


@dataclass(slots=True)
class Found:
    """A class of suspects: how many there are, their bytes, and the first few by name."""

    count: int = 0
    bytes: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one walk found. `links` is the number of good ones but the canary's."""

    links: int
    suspects: tuple[Suspect, ...]
    found: Mapping[Leak, Found]
    blobs: int
    bytes: int
    unreadable: tuple[StorageUnreadable, ...]


OnLink = Callable[[str, Artifact], None]
"""What to do with each good link: its path and its artifact."""


@dataclass(slots=True)
class _Walk:
    """What is collected on the way."""

    store: Store
    on_link: OnLink
    most: int
    links: int = 0
    present: Hashes = field(default_factory=Hashes)
    torn: set[str] = field(default_factory=set)
    targets: Hashes = field(default_factory=Hashes)
    revisions: Hashes = field(default_factory=Hashes)
    suspects: list[Suspect] = field(default_factory=list)
    found: dict[Leak, Found] = field(default_factory=dict)
    remembered: Counter[Leak] = field(default_factory=Counter)
    unreadable: list[StorageUnreadable] = field(default_factory=list)
    blobs: int = 0
    bytes: int = 0

    def suspect(
        self, leak: Leak, path: str, *, digest: str = "", repository: str = "", also: int = 0
    ) -> None:
        """Remember a file that looks wrong, if it is still there."""
        facts = self.store.facts(path)
        if facts is None or facts.is_directory:
            return
        found = self.found.setdefault(leak, Found())
        found.count += 1
        found.bytes += facts.size
        if len(found.examples) < EXAMPLES:
            found.examples.append(path)
        if self.remembered[leak] < self.most:
            self.remembered[leak] += 1
            youngest = max(facts.mtime, facts.ctime, also)
            self.suspects.append(Suspect(leak, path, digest, repository, facts, youngest))


def look(
    store: Store,
    *,
    deep: bool,
    canary_digest: str | None = None,
    most: int = ALL,
    on_link: OnLink = lambda _path, _artifact: None,
) -> Survey:
    """Walk once, and remember `most` suspects of each class. `deep` also looks for uploads and temporary files, in every directory there is.

    Raises StorageUnreadable if a directory cannot be listed.
    """
    store.refresh()
    walk = _Walk(store, on_link, most)
    repositories = tuple(inventory.repositories(store))
    _data(walk, canary_digest)
    _links(walk)
    for repository in repositories:
        _tags(walk, repository)
    _unlinked(walk, canary_digest)
    _job_states(walk)
    if deep:
        _temporary(walk, repositories)
    return Survey(
        links=walk.links,
        suspects=tuple(walk.suspects),
        found=walk.found,
        blobs=walk.blobs,
        bytes=walk.bytes,
        unreadable=tuple(walk.unreadable),
    )


def is_linked(store: Store, digest: str, repositories: tuple[str, ...]) -> bool:
    """Whether any of these repositories has a link to the digest at this moment.

    Raises StorageUnreadable.
    """
    return any(
        store.facts(layout.link_path(Artifact(repository, digest, kind))) is not None
        for repository in repositories
        for kind in Kind
    )


def _data(walk: _Walk, canary_digest: str | None) -> None:
    """Which data there are, how large, and which are of no bytes."""
    for directory in inventory.blob_directories(walk.store):
        answers = walk.store.facts_each(directory.path, directory.names, layout.DATA)
        for name, facts in answers:
            digest = f"{directory.algorithm}:{name}"
            if isinstance(facts, StorageUnreadable):
                raise facts
            if facts is None or digest == canary_digest:
                continue
            walk.present.add(digest)
            walk.blobs += 1
            walk.bytes += facts.size
            if facts.size == 0 and digest not in EMPTY_DIGESTS:
                walk.torn.add(digest)


def _links(walk: _Walk) -> None:
    """Good links and what they lead to (an alias to the digest in it); bad ones are suspects."""
    for directory in inventory.link_directories(walk.store):
        is_manifest = directory.kind is Kind.MANIFEST
        for link in inventory.read_links(walk.store, directory):
            digest = f"{directory.algorithm}:{link.name}"
            path = f"{directory.path}/{link.name}/{layout.LINK}"
            match link.status:
                case LinkStatus.GOOD | LinkStatus.ALIAS:
                    for named in {digest, link.target}:
                        walk.targets.add(named)
                        if is_manifest:
                            walk.revisions.add((directory.repository, named))
                    if directory.repository != canary.REPOSITORY:
                        artifact = Artifact(directory.repository, link.target, directory.kind)
                        _check_link(walk, path, artifact)
                case LinkStatus.BAD:
                    walk.suspect(Leak.BAD, path, digest=digest, repository=directory.repository)
                case LinkStatus.GONE:
                    pass
                case LinkStatus.UNREADABLE:
                    error = link.error or StorageUnreadable(path)
                    if directory.algorithm != "sha256":
                        raise error
                    walk.unreadable.append(error)
                    walk.targets.add(digest)
                    if is_manifest:
                        walk.revisions.add((directory.repository, digest))
                    # Without it a rebuilt state would not cover the artifact.
                    if directory.repository != canary.REPOSITORY:
                        walk.links += 1
                        walk.on_link(path, Artifact(directory.repository, digest, directory.kind))


def _check_link(walk: _Walk, path: str, artifact: Artifact) -> None:
    """A link to nothing or to torn data is a suspect; any other is an artifact."""
    repository, target = artifact.repository, artifact.digest
    if target not in walk.present or target in walk.torn:
        # Data were listed before: look again, a fill may have ended in between.
        data = walk.store.facts(layout.blob_path(target))
        if data is None:
            walk.suspect(Leak.DANGLING, path, digest=target, repository=repository)
            return
        if data.size == 0 and target not in EMPTY_DIGESTS:
            youngest = max(data.mtime, data.ctime)
            walk.suspect(Leak.TORN, path, digest=target, repository=repository, also=youngest)
            return
    walk.links += 1
    walk.on_link(path, artifact)


def _unlinked(walk: _Walk, canary_digest: str | None) -> None:
    """Data that no link led to."""
    for digest in inventory.blob_digests(walk.store):
        if digest in walk.targets or digest == canary_digest:
            continue
        facts = walk.store.facts(layout.blob_path(digest))
        if facts is not None:
            leak = _class_of_data(walk.store, digest, facts)
            walk.suspect(leak, layout.blob_path(digest), digest=digest)


def _job_states(walk: _Walk) -> None:
    """A start that installs one does so before any keeper runs: what lies here is not this
    start's."""
    for name in walk.store.names("") or ():
        if name.startswith(layout.NEXT_STATE_PREFIX) and not name.endswith(layout.TEMPORARY):
            walk.suspect(Leak.JOB, name)


def _tags(walk: _Walk, repository: str) -> None:
    """Tag links whose manifest is not linked in the repository."""
    base = f"{layout.repository_path(repository)}/{layout.TAGS}"
    for tag in walk.store.names(base) or ():
        current = f"{base}/{tag}/current/{layout.LINK}"
        content = walk.store.read(current, layout.LONGEST_LINK + 1)
        if content is not None:
            target = content.decode("ascii", "replace")
            if (repository, target) not in walk.revisions:
                walk.suspect(Leak.TAG, current, digest=target, repository=repository)
        index = f"{base}/{tag}/index"
        for algorithm in walk.store.names(index) or ():
            for digits in walk.store.names(f"{index}/{algorithm}") or ():
                digest = f"{algorithm}:{digits}"
                if (repository, digest) not in walk.revisions:
                    path = f"{index}/{algorithm}/{digits}/{layout.LINK}"
                    walk.suspect(Leak.TAG, path, digest=digest, repository=repository)


def _class_of_data(store: Store, digest: str, facts: Facts) -> Leak:
    """Manifest payloads are told from layers by their bytes: nothing else on the storage says it."""
    if facts.size > LARGEST_PAYLOAD:
        return Leak.ORPHAN
    content = store.read(layout.blob_path(digest), TELLING) or b""
    return Leak.PAYLOAD if reads_as_manifest(content) else Leak.ORPHAN


def _temporary(walk: _Walk, repositories: tuple[str, ...]) -> None:
    """Leftovers of writes: beside the TTL state, links, tags and data, and in `_uploads`."""
    store = walk.store
    for repository in repositories:
        base = f"{layout.repository_path(repository)}/{layout.UPLOADS}"
        for upload in store.names(base) or ():
            _upload(walk, f"{base}/{upload}", repository)
    for above, names in _written_to(store, repositories):
        for name, below in store.names_each(above, names):
            if isinstance(below, StorageUnreadable):
                raise below
            for file in below or ():
                if file.endswith(layout.TEMPORARY):
                    walk.suspect(Leak.TEMPORARY, f"{above}/{name}/{file}")
    for directory in ("", layout.OURS):
        for file in store.names(directory) or ():
            if file.endswith(layout.TEMPORARY):
                walk.suspect(Leak.TEMPORARY, f"{directory}/{file}" if directory else file)


def _written_to(store: Store, repositories: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Where a write of the registry may have left a temporary file: a directory, and names in it."""
    for blobs in inventory.blob_directories(store):
        yield blobs.path, blobs.names
    for links in inventory.link_directories(store):
        yield links.path, links.names
    for repository in repositories:
        tags = f"{layout.repository_path(repository)}/{layout.TAGS}"
        for tag in store.names(tags) or ():
            yield f"{tags}/{tag}", ["current"]


def _upload(walk: _Walk, directory: str, repository: str) -> None:
    """An upload is as young as the newest file in it."""
    paths = [f"{directory}/{name}" for name in walk.store.names(directory) or ()]
    youngest = upload_youngest(walk.store, directory)
    for path in paths:
        walk.suspect(Leak.UPLOAD, path, repository=repository, also=youngest)


def upload_youngest(store: Store, directory: str) -> int:
    """The newest time of any file in an upload's directory; 0 if there is none."""
    seen = [store.facts(f"{directory}/{name}") for name in store.names(directory) or ()]
    return max((max(facts.mtime, facts.ctime) for facts in seen if facts is not None), default=0)
