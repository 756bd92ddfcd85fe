"""Whether a registry writes on a storage that must be left to us: two looks, and what differs.

A registry writes whenever it is used: each fill makes and removes a directory in `_uploads` (its
time changes even if the fill began and ended between the looks), data gets a directory of its own,
each pull by tag rewrites the tag's link, and the TTL state is saved within five seconds of a fill.
A registry that nobody uses writes nothing: no program can see it from its storage.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pullthrough.storage import inventory, layout
from pullthrough.storage.errors import StorageInUse
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import Clock, Facts, Store

RECENT = 10 * SECOND
SAVED = 6.0
"""Seconds within which a registry has saved what it filled: it looks every 5 s
(v3.1.1:registry/proxy/scheduler/scheduler.go:134-156)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The places that a running registry writes to, at one moment. Facts by path."""

    state: Facts | None
    state_hash: bytes
    places: dict[str, Facts]
    blobs: dict[str, int]
    """How many blobs each two-digit directory holds, with the directory's time: path -> hash."""


def look(store: Store) -> Look:
    """Raises StorageUnreadable."""
    store.refresh()
    places: dict[str, Facts] = {}
    for repository in inventory.repositories(store):
        base = layout.repository_path(repository)
        uploads = f"{base}/{layout.UPLOADS}"
        _remember(store, places, uploads)
        for upload in store.names(uploads) or ():
            for name in store.names(f"{uploads}/{upload}") or ():
                _remember(store, places, f"{uploads}/{upload}/{name}")
        for tag in store.names(f"{base}/{layout.TAGS}") or ():
            _remember(store, places, layout.tag_link_path(repository, tag))
    blobs = {}
    for algorithm in store.names(layout.BLOBS) or ():
        for first in store.names(f"{layout.BLOBS}/{algorithm}") or ():
            path = f"{layout.BLOBS}/{algorithm}/{first}"
            _remember(store, places, path)
            blobs[path] = hash(frozenset(store.names(path) or ()))
    raw = store.read(layout.STATE)
    return Look(
        state=store.facts(layout.STATE),
        state_hash=b"" if raw is None else hashlib.sha256(raw).digest(),
        places=places,
        blobs=blobs,
    )


def first_look(store: Store, clock: Clock) -> Look:
    """The first of two looks. If something was filled or pulled just now it waits until a registry
    would have saved that, and takes care that the second look sees it. Raises StorageInUse."""
    first = look(store)
    now = clock.now()
    if any(abs(now - facts.mtime) < RECENT for facts in first.places.values()):
        clock.sleep(SAVED)
        check(store, first)
    return first


def check(store: Store, first: Look) -> None:
    """Look again. Raises StorageInUse if anything differs, StorageUnreadable."""
    what = difference(first, look(store))
    if what is not None:
        msg = (
            f"{what} while this looked: a registry runs on this storage; stop it first (nothing was"
            " changed)"
        )
        raise StorageInUse(msg)


def difference(first: Look, second: Look) -> str | None:
    """The first thing that differs, as the beginning of a sentence; pure."""
    if (first.state, first.state_hash) != (second.state, second.state_hash):
        return f"{layout.STATE} was written"
    for path, facts in second.places.items():
        before = first.places.get(path)
        if before is None:
            return f"{path} appeared"
        if (before.mtime, before.inode) != (facts.mtime, facts.inode):
            return f"{path} was written"
        if not facts.is_directory and before.size != facts.size:
            return f"{path} was written"
    for path in first.places:
        if path not in second.places:
            return f"{path} vanished"
    for path, names in second.blobs.items():
        if first.blobs.get(path) != names:
            return f"{path} got or lost a blob"
    return None


def _remember(store: Store, places: dict[str, Facts], path: str) -> None:
    facts = store.facts(path)
    if facts is not None:
        places[path] = facts
