"""One walk over the storage while the registry serves: what lies there, what of it looks wrong.

Reads only. Whatever vanishes during the walk was gone; a directory that cannot be read ends the
walk with StorageUnreadable, because a link that was not seen would make its data look unreachable.
One unreadable sha256 link does not: its directory's name is its digest (an alias is always a
sha512 or sha384 directory with the sha256 in it, v3.1.1:registry/storage/linkedblobstore.go:327).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pullthrough.storage import canary, inventory, layout
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.inventory import LinkStatus
from pullthrough.storage.layout import Artifact, Kind
from pullthrough.storage.store import Facts, Store
from pullthrough.storage.survey import EMPTY_DIGESTS

LARGEST_PAYLOAD = 4 << 20
"""Manifests are refused beyond this (v3.1.1:registry/handlers/manifests.go:26)."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one walk found. `links` are all good ones but the canary's: path -> artifact."""

    links: dict[str, Artifact]
    repositories: tuple[str, ...]
    suspects: tuple[Suspect, ...]
    bytes: int
    unreadable: tuple[StorageUnreadable, ...]


@dataclass(slots=True)
class _Walk:
    """What is collected on the way."""

    store: Store
    links: dict[str, Artifact] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    revisions: set[tuple[str, str]] = field(default_factory=set)
    suspects: list[Suspect] = field(default_factory=list)
    unreadable: list[StorageUnreadable] = field(default_factory=list)

    def suspect(
        self, leak: Leak, path: str, *, digest: str = "", repository: str = "", also: int = 0
    ) -> None:
        """Remember a file that looks wrong, if it is still there."""
        facts = self.store.facts(path)
        if facts is not None and not facts.is_directory:
            youngest = max(facts.mtime, facts.ctime, also)
            self.suspects.append(Suspect(leak, path, digest, repository, facts, youngest))


def look(store: Store, *, deep: bool, canary_digest: str | None = None) -> Survey:
    """Walk once. `deep` also looks for uploads and temporary files, in every directory there is.

    Raises StorageUnreadable if a directory cannot be listed.
    """
    store.refresh()
    walk = _Walk(store)
    repositories = tuple(inventory.repositories(store))
    pairs = list(_links(walk))
    data = dict(_data(store))
    for path, artifact in pairs:
        _check_link(walk, path, artifact, data.get(artifact.digest))
    for repository in repositories:
        _tags(walk, repository)
    for digest, facts in data.items():
        if digest not in walk.targets and digest != canary_digest:
            leak = _class_of_data(store, digest, facts)
            walk.suspect(leak, layout.blob_path(digest), digest=digest)
    if deep:
        _temporary(walk, repositories, data)
    return Survey(
        links=walk.links,
        repositories=repositories,
        suspects=tuple(walk.suspects),
        bytes=sum(facts.size for digest, facts in data.items() if digest != canary_digest),
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


def _links(walk: _Walk) -> Iterator[tuple[str, Artifact]]:
    """Good links and what they lead to (an alias to the digest in it); bad ones are suspects."""
    for directory in inventory.link_directories(walk.store):
        for link in inventory.read_links(walk.store, directory):
            digest = f"{directory.algorithm}:{link.name}"
            path = f"{directory.path}/{link.name}/{layout.LINK}"
            match link.status:
                case LinkStatus.GOOD | LinkStatus.ALIAS:
                    walk.targets |= {digest, link.target}
                    if directory.kind is Kind.MANIFEST:
                        walk.revisions.add((directory.repository, digest))
                        walk.revisions.add((directory.repository, link.target))
                    if directory.repository != canary.REPOSITORY:
                        yield path, Artifact(directory.repository, link.target, directory.kind)
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
                    # Without it a rebuilt state would not cover the artifact.
                    if directory.repository != canary.REPOSITORY:
                        walk.links[path] = Artifact(directory.repository, digest, directory.kind)
                    if directory.kind is Kind.MANIFEST:
                        walk.revisions.add((directory.repository, digest))


def _data(store: Store) -> Iterator[tuple[str, Facts]]:
    for digest in inventory.blob_digests(store):
        facts = store.facts(layout.blob_path(digest))
        if facts is not None:
            yield digest, facts


def _check_link(walk: _Walk, path: str, artifact: Artifact, data: Facts | None) -> None:
    """A link to nothing or to torn data is a suspect; any other is an artifact."""
    repository, target = artifact.repository, artifact.digest
    if data is None:
        # Listed before the data were: look again, a fill may have ended in between.
        if walk.store.facts(layout.blob_path(target)) is None:
            walk.suspect(Leak.DANGLING, path, digest=target, repository=repository)
    elif data.size == 0 and target not in EMPTY_DIGESTS:
        youngest = max(data.mtime, data.ctime)
        walk.suspect(Leak.TORN, path, digest=target, repository=repository, also=youngest)
    else:
        walk.links[path] = artifact


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
    content = store.read(layout.blob_path(digest), LARGEST_PAYLOAD) or b""
    is_manifest = content.lstrip().startswith(b"{") and b'"schemaVersion"' in content
    return Leak.PAYLOAD if is_manifest else Leak.ORPHAN


def _temporary(walk: _Walk, repositories: tuple[str, ...], data: dict[str, Facts]) -> None:
    """Leftovers of writes: beside the TTL state, links, tags and data, and in `_uploads`."""
    store = walk.store
    directories = ["", *(layout.blob_directory(digest) for digest in data)]
    for directory in inventory.link_directories(store):
        directories += [f"{directory.path}/{name}" for name in directory.names]
    for repository in repositories:
        base = layout.repository_path(repository)
        for tag in store.names(f"{base}/{layout.TAGS}") or ():
            directories.append(f"{base}/{layout.TAGS}/{tag}/current")
        for upload in store.names(f"{base}/{layout.UPLOADS}") or ():
            _upload(walk, f"{base}/{layout.UPLOADS}/{upload}", repository)
    for directory_path in directories:
        for name in store.names(directory_path) or ():
            if name.endswith(layout.TEMPORARY):
                walk.suspect(Leak.TEMPORARY, f"{directory_path}/{name}" if directory_path else name)


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
