"""Every access of the keeper to the storage goes through here and is timed.

Two things come of it. *Progress*: an operation that came back, well or not, is a sign of life; a
file system that hangs gives none. *Latency*: the moving average of small operations (a stat, a
link read, an unlink), by which the keeper sees that the storage is busy with somebody else's work,
a registry's above all, and steps back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.keeper import entries
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import WHOLE, Clock, Facts, Store

SLOW = 20_000_000
"""Nanoseconds; a local disk takes 0.01 ms for a small operation, a network file system 1-5 ms. What
takes longer on the average is busy."""
WEIGHT = 16
"""The latest operation's share in the average is one of so many: about the last thirty count."""
LONGEST = 10 * SECOND
"""One operation counts for no more than this: a clock that was set is no slow disk."""


class PacedStore:
    """A Store that times another one. `on_operation` is called after each operation."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.latency = 0.0
        """Nanoseconds, the moving average of small operations."""
        self.progressed = clock.now()
        """When the latest operation came back."""
        self.on_operation: Callable[[], None] = _nothing

    @property
    def is_slow(self) -> bool:
        """Whether the storage is busy."""
        return self.latency > SLOW

    def names(self, directory: str) -> list[str] | None:
        """See Store."""
        try:
            return self._store.names(directory)
        finally:
            self._done()

    def directories(self, directory: str) -> list[str] | None:
        """See Store."""
        try:
            return self._store.directories(directory)
        finally:
            self._done()

    def read(self, path: str, limit: int = WHOLE) -> bytes | None:
        """See Store."""
        try:
            return self._store.read(path, limit)
        finally:
            self._done()

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """See InPieces; a Store that cannot do it gives the whole at once."""
        if not isinstance(self._store, entries.InPieces):
            yield self.read(path) or b""
            return
        for piece in self._store.pieces(path, size):
            self._done()
            yield piece

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        """See Store."""
        began = self._clock.now()
        for found in self._store.read_each(directory, names, leaf, limit):
            self._done(began)
            yield found
            began = self._clock.now()

    def names_each(
        self, directory: str, names: Iterable[str]
    ) -> Iterator[tuple[str, list[str] | StorageUnreadable | None]]:
        """See Store."""
        for found in self._store.names_each(directory, names):
            self._done()
            yield found

    def facts_each(
        self, directory: str, names: Iterable[str], leaf: str
    ) -> Iterator[tuple[str, Facts | StorageUnreadable | None]]:
        """See Store."""
        began = self._clock.now()
        for found in self._store.facts_each(directory, names, leaf):
            self._done(began)
            yield found
            began = self._clock.now()

    def facts(self, path: str) -> Facts | None:
        """See Store."""
        began = self._clock.now()
        try:
            return self._store.facts(path)
        finally:
            self._done(began)

    def free(self) -> int:
        """See Store."""
        try:
            return self._store.free()
        finally:
            self._done()

    def refresh(self) -> None:
        """See Store."""
        self._store.refresh()
        self._done()

    def make_directories(self, path: str) -> None:
        """See Store."""
        self._store.make_directories(path)
        self._done()

    def create(self, path: str, data: bytes) -> None:
        """See Store."""
        self._store.create(path, data)
        self._done()

    def overwrite(self, path: str, data: bytes) -> None:
        """See Store."""
        self._store.overwrite(path, data)
        self._done()

    def rename(self, source: str, target: str) -> None:
        """See Store."""
        self._store.rename(source, target)
        self._done()

    def replace(self, path: str, data: bytes) -> None:
        """See Store."""
        self._store.replace(path, data)
        self._done()

    def unlink(self, path: str) -> bool:
        """See Store."""
        began = self._clock.now()
        try:
            return self._store.unlink(path)
        finally:
            self._done(began)

    def rmdir(self, path: str) -> bool:
        """See Store."""
        try:
            return self._store.rmdir(path)
        finally:
            self._done()

    def sync_directory(self, path: str) -> None:
        """See Store."""
        self._store.sync_directory(path)
        self._done()

    def _done(self, began: int | None = None) -> None:
        now = self._clock.now()
        if began is not None:
            took = min(max(now - began, 0), LONGEST)
            self.latency += (took - self.latency) / WEIGHT
        self.progressed = now
        self.on_operation()


def _nothing() -> None:
    """Before anybody listens."""
