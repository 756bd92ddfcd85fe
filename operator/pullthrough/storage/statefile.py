"""Reading the state file from a store, with and without a registry that may be writing it."""

from __future__ import annotations

from pullthrough.storage import layout, state
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.store import Clock, Store

ATTEMPTS = 20
PAUSE = 0.25
"""Seconds between attempts: 2.8 and 3.0 truncate and rewrite the file in place, which shows an
empty or torn file for as long as the write takes (2.8:.../driver/filesystem/driver.go:134-147)."""
ASIDE = f"{layout.OURS}/scheduler-state.malformed.json"
"""Where a malformed state is kept for people; one at a time, so that they cannot fill a disk."""


def load(store: Store, path: str = layout.STATE) -> state.State | None:
    """The state of a stopped registry; None if there is none.

    Raises StateMalformed, StorageUnreadable (a directory in the file's place, among others).
    """
    raw = store.read(path)
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
        raw = store.read(layout.STATE)
        if raw is None and before is None:
            return None
        if raw is None or before is None or before[:2] + before[3:] != _still(store):
            continue
        try:
            return state.parse(raw)
        except StateMalformed as error:
            problem = error
    raise problem


def set_aside(store: Store) -> None:
    """Rename the state file out of the registry's way. Raises StorageFull, StorageNotWritable."""
    store.make_directories(layout.OURS)
    store.rename(layout.STATE, ASIDE)
    store.sync_directory("")


def _still(store: Store) -> tuple[object, ...] | None:
    after = store.facts(layout.STATE)
    return None if after is None else after[:2] + after[3:]
