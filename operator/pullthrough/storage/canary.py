"""The canary: a few bytes planted as a real artifact, with an entry that fires at once.

Only its *data* vanishing proves that scheduler, delete switch, permissions and driver work: with
deletion off the entry vanishes all the same (v3.1.1:registry/proxy/scheduler/scheduler.go:196-204).
"""

from __future__ import annotations

import hashlib

from pullthrough.storage import layout
from pullthrough.storage.state import SECOND, Entry
from pullthrough.storage.store import Store, replace

REPOSITORY = "pullthrough.dev/canary"
DELAY = 5 * SECOND
"""How far ahead of the start its entry lies."""


def content(seed: str) -> bytes:
    """The bytes for a seed: the Job's uid, or the template's id where there was no Job."""
    return b"pullthrough canary " + hashlib.sha256(seed.encode()).hexdigest().encode()


def artifact(seed: str) -> layout.Artifact:
    """The canary as an artifact."""
    digest = "sha256:" + hashlib.sha256(content(seed)).hexdigest()
    return layout.Artifact(REPOSITORY, digest, layout.Kind.BLOB)


def key(seed: str) -> str:
    """The key of the canary's entry."""
    return layout.key(REPOSITORY, artifact(seed).digest)


def entry(now: int) -> Entry:
    """The canary's entry: a few seconds ahead; by the time the registry reads it, perhaps past."""
    return Entry(now + DELAY, layout.Kind.BLOB)


def is_canary(some_key: str) -> bool:
    """Whether an entry's key is of a canary, this one or an earlier one."""
    return some_key.startswith(REPOSITORY + "@")


def plant(store: Store, seed: str) -> None:
    """Write data, then link. Raises StorageFull, StorageNotWritable, StorageUnreadable."""
    planted = artifact(seed)
    _clear(store, planted)
    replace(store, layout.blob_path(planted.digest), content(seed))
    replace(store, layout.link_path(planted), planted.digest.encode())


def uproot(store: Store, digest: str) -> None:
    """Remove a canary that nobody ate; only while no registry runs. Nothing there is fine.

    Its link directory goes last: it is how the next run finds what a killed one left.
    """
    former = layout.Artifact(REPOSITORY, digest, layout.Kind.BLOB)
    _clear(store, former)
    store.unlink(layout.blob_path(digest))
    store.rmdir(layout.blob_directory(digest))
    store.unlink(layout.link_path(former))
    store.rmdir(layout.link_directory(former))


def _clear(store: Store, planted: layout.Artifact) -> None:
    """Remove what a run that was killed in the middle of planting left aside."""
    for directory in (layout.blob_directory(planted.digest), layout.link_directory(planted)):
        for name in store.names(directory) or ():
            if name.endswith(layout.TEMPORARY):
                store.unlink(f"{directory}/{name}")
