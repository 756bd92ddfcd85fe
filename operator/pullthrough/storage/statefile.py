"""Reading the state file from a store, with and without a registry that may be writing it."""

from __future__ import annotations

import contextlib

from pullthrough.storage import layout, state
from pullthrough.storage.errors import StateMalformed, StorageError
from pullthrough.storage.store import Clock, Store, replace

LARGEST = 1 << 29
"""Bytes of the largest state file that is read: about two million entries, with which a registry
needs more than 4 GiB. What is larger is damage, and reading it would be ours."""

ATTEMPTS = 20
PAUSE = 0.25
"""Seconds between attempts: 2.8 and 3.0 truncate and rewrite the file in place, which shows an
empty or torn file for as long as the write takes (2.8:.../driver/filesystem/driver.go:134-147)."""
ASIDE = f"{layout.OURS}/scheduler-state.malformed.json"
"""Where a malformed state is kept for people; one at a time, so that they cannot fill a disk."""


def read(store: Store, path: str = layout.STATE) -> bytes | None:
    """A state file's bytes; one that is too large is not read. Raises StateMalformed,
    StorageUnreadable."""
    facts = store.facts(path)
    if facts is not None and facts.size > LARGEST and not facts.is_directory:
        raise state.too_large(path, facts.size, LARGEST)
    raw = store.read(path, LARGEST + 1)
    if raw is not None and len(raw) > LARGEST:
        raise state.too_large(path, len(raw), LARGEST)
    return raw


def load(store: Store, path: str = layout.STATE) -> state.State | None:
    """The state of a stopped registry; None if there is none.

    Raises StateMalformed, StorageUnreadable (a directory in the file's place, among others).
    """
    raw = read(store, path)
    return None if raw is None else state.parse(raw)


def load_serving(store: Store, clock: Clock, attempts: int = ATTEMPTS) -> state.State | None:
    """The state beside a registry that may be writing it: believed only when whole and unchanged.

    None if there is none. Raises StateMalformed after `attempts` bad reads, StorageUnreadable.
    """
    problem = StateMalformed(
        "changing", f"{layout.STATE} keeps changing while it is read; try again"
    )
    for attempt in range(attempts):
        if attempt:
            clock.sleep(PAUSE)
        before = store.facts(layout.STATE)
        raw = read(store)
        if raw is None and before is None:
            return None
        if raw is None or before is None or before[:2] + before[3:] != _still(store):
            continue
        try:
            return state.parse(raw)
        except StateMalformed as error:
            problem = error
    raise problem


def copy_aside(store: Store, path: str = layout.STATE) -> None:
    """Keep a malformed state's bytes for people while the file stays in its place until the new one
    replaces it: a program killed in between must not leave a registry without any state. Does
    nothing where that cannot be done (a full disk, a file too large): the bytes are of little use.
    """
    with contextlib.suppress(StorageError):
        replace(store, ASIDE, read(store, path) or b"")


def set_aside(store: Store) -> None:
    """Rename what lies in the state file's place out of the registry's way: a directory, or a
    malformed file that could not be replaced. Raises StorageFull, StorageNotWritable,
    StorageUnreadable."""
    store.make_directories(layout.OURS)
    facts = store.facts(layout.STATE)
    target = ASIDE
    if facts is not None and facts.is_directory:
        # Nothing can be renamed over a directory that holds something.
        taken = store.names(layout.OURS) or []
        numbers = (f"{ASIDE}.{number}" for number in range(1, len(taken) + 2))
        target = next(name for name in numbers if name.rpartition("/")[2] not in taken)
    store.rename(layout.STATE, target)
    store.sync_directory("")


def clear_aside(store: Store, path: str = layout.STATE) -> None:
    """Remove what killed writers of this file left beside it. Only for a program that is the file's
    only writer. Raises StorageUnreadable, StorageNotWritable."""
    directory, slash, file = path.rpartition("/")
    for name in store.names(directory) or ():
        if name.startswith(f"{file}.") and name.endswith(layout.TEMPORARY):
            store.unlink(f"{directory}{slash}{name}")


def _still(store: Store) -> tuple[object, ...] | None:
    after = store.facts(layout.STATE)
    return None if after is None else after[:2] + after[3:]
