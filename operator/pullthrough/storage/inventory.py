"""What lies on a registry's storage: links by directory names, their contents, blobs.

A walk goes down the known depth and nowhere else. What vanishes below a directory that was just
listed is gone (a registry may be running); whatever else cannot be read is an error, never
"nothing there": a sweep would delete what it did not see. Both `_layers` and `_manifests` count:
2.8 calls only the first a repository (2.8:registry/storage/catalog.go:139-157), v3 only the second
(v3.1.1:...catalog.go:147-167), and a pull can make either alone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pullthrough.storage import layout
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.store import Store

OnError = Callable[[StorageUnreadable], None]
"""What to do about something unreadable; the default raises it."""


def abort(error: StorageUnreadable) -> None:
    """Raise: nothing may be concluded from a storage that cannot be read whole."""
    raise error


class LinkDirectory(NamedTuple):
    """One directory `<repository>/_layers/<algorithm>` or `.../_manifests/revisions/<algorithm>`.

    `names` are the hexadecimal names in it: one per link, or emptied. `strange` are other names.
    """

    repository: str
    kind: layout.Kind
    algorithm: str
    path: str
    names: list[str]
    strange: list[str]

    @property
    def is_schedulable(self) -> bool:
        """Whether entries for this repository can ever fire."""
        return layout.is_repository(self.repository)


class LinkStatus(enum.Enum):
    """What a link's content says."""

    GOOD = "good"
    """It names the digest that its directory names."""
    ALIAS = "alias"
    """It names another digest: the blob was asked for by another algorithm."""
    BAD = "bad"
    """It is empty or garbage: requests for it fail (v3.1.1:registry/storage/blobstore.go:142)."""
    GONE = "gone"
    """There is no link file: an emptied directory."""
    UNREADABLE = "unreadable"


class Link(NamedTuple):
    """A link directory's name and what its link says. `target` is a digest for GOOD and ALIAS."""

    name: str
    status: LinkStatus
    target: str
    error: StorageUnreadable | None = None


def repositories(store: Store, on_error: OnError = abort) -> Iterator[str]:
    """Every directory below `repositories/` that is or could be a repository's name, parents first.

    Whether it holds links is seen only by looking at it. Raises StorageUnreadable through on_error.
    """
    pending = [""]
    while pending:
        name = pending.pop()
        below = layout.repository_path(name) if name else layout.REPOSITORIES
        children = _guarded(store.directories, below, on_error)
        if name:
            yield name
        # Longer than any name can be: a loop of symbolic links.
        if len(name) <= 2 * layout.LONGEST_NAME:
            children.sort(reverse=True)
            pending += [
                f"{name}/{child}" if name else child
                for child in children
                if not child.startswith("_")
            ]


def link_directories(store: Store, on_error: OnError = abort) -> Iterator[LinkDirectory]:
    """All link directories of all repositories, with the names in them; links are not opened."""
    for repository in repositories(store, on_error):
        for kind, where in layout.KIND_DIRECTORIES.items():
            base = f"{layout.REPOSITORIES}/{repository}/{where}"
            for algorithm in sorted(_guarded(store.names, base, on_error)):
                if algorithm not in layout.ALGORITHMS:
                    continue
                path = f"{base}/{algorithm}"
                found = _guarded(store.names, path, on_error)
                names = layout.hex_names(algorithm, found)
                strange = (
                    [name for name in found if not layout.is_hex(algorithm, name)]
                    if len(names) != len(found)
                    else []
                )
                names.sort()
                yield LinkDirectory(repository, kind, algorithm, path, names, strange)


def read_links(
    store: Store, directory: LinkDirectory, names: Iterable[str] | None = None
) -> Iterator[Link]:
    """Open the links of these names (default: all) and say what each is. Never raises: what cannot
    be read has status UNREADABLE and its error."""
    wanted = directory.names if names is None else names
    limit = layout.LONGEST_LINK + 1
    for name, content in store.read_each(directory.path, wanted, layout.LINK, limit):
        yield classify(directory.algorithm, name, content)


def classify(algorithm: str, name: str, content: bytes | StorageUnreadable | None) -> Link:
    """What a link's content (as `Store.read_each` gives it) says."""
    digest = f"{algorithm}:{name}"
    if content == digest.encode():
        return Link(name, LinkStatus.GOOD, digest)
    if content is None:
        return Link(name, LinkStatus.GONE, "")
    if isinstance(content, StorageUnreadable):
        return Link(name, LinkStatus.UNREADABLE, "", content)
    text = content.decode("ascii", "replace")
    if layout.is_digest(text):
        return Link(name, LinkStatus.ALIAS, text)
    return Link(name, LinkStatus.BAD, "")


class BlobDirectory(NamedTuple):
    """One of the directories `blobs/<algorithm>/<two digits>`, with the names of digests in it."""

    algorithm: str
    path: str
    names: list[str]


def blob_directories(store: Store, on_error: OnError = abort) -> Iterator[BlobDirectory]:
    """All directories of blobs; whether `data` is in what they name is not looked at."""
    for algorithm in sorted(_guarded(store.names, layout.BLOBS, on_error)):
        if algorithm not in layout.ALGORITHMS:
            continue
        base = f"{layout.BLOBS}/{algorithm}"
        for first in sorted(_guarded(store.names, base, on_error)):
            path = f"{base}/{first}"
            found = layout.hex_names(algorithm, _guarded(store.names, path, on_error))
            names = [name for name in found if name[:2] == first]
            names.sort()
            yield BlobDirectory(algorithm, path, names)


def blob_digests(store: Store, on_error: OnError = abort) -> Iterator[str]:
    """Digests of all blob directories; whether `data` is in them is not looked at."""
    for directory in blob_directories(store, on_error):
        for name in directory.names:
            yield f"{directory.algorithm}:{name}"


class Blobs:
    """Which digests have a blob directory. Lists each two-digit directory once, when first asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, frozenset[str]] = {}

    def has(self, digest: str) -> bool:
        """Whether the blob's directory is there. Raises StorageUnreadable."""
        algorithm, _, digits = digest.partition(":")
        directory = f"{layout.BLOBS}/{algorithm}/{digits[:2]}"
        names = self._seen.get(directory)
        if names is None:
            names = frozenset(self._store.names(directory) or ())
            self._seen[directory] = names
        return digits in names


def holds_content(store: Store) -> bool:
    """Whether anything of a registry lies here: a repository or a blob. Raises StorageUnreadable."""
    return bool(store.names(layout.REPOSITORIES)) or bool(store.names(layout.BLOBS))


def _guarded(listing: Callable[[str], list[str] | None], path: str, on_error: OnError) -> list[str]:
    try:
        return listing(path) or []
    except StorageUnreadable as error:
        on_error(error)
        return []
