"""The TTL state, read piece by piece: which keys it lists and how many of them are overdue.

The whole file as Python objects would be 150 MB for 100,000 entries. What registries and we write
is one line of entries of one shape, and that is what is recognised here. A file of any other shape
is either cut off (the registry is writing it) or was written by hand: then state.parse decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Protocol, runtime_checkable

from pullthrough.storage import canary, layout, state
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.keeper.hashes import Hashes
from pullthrough.storage.store import Store

PIECE = 1 << 18
"""Bytes read at once."""
LARGEST_WHOLE = 64 << 20
"""Bytes of a state of another shape that is still read, all at once."""
LONGEST_ENTRY = 4096
"""Bytes; with less than this in hand an entry may be cut, and more is read before looking."""

_ENTRY = re.compile(
    rb'"([A-Za-z0-9._/-]{1,1000})@(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})"'
    rb':\{"Key":"\1@\2",'
    rb'"ExpiryData":"(\d{4}-\d\d-\d\d)(T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(\.\d+)?'
    rb'(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",'
    rb'"EntryType":[01]\}([,}])'
)


class StateTooLarge(StateMalformed):
    """Nobody can say what is in it; a registry with memory enough may live with it."""


@runtime_checkable
class InPieces(Protocol):
    """A Store that can hand a file out piece by piece."""

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """The file's bytes in order, `size` at once; nothing if it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """What a whole, well-formed state lists. `overdue` leaves canaries out."""

    keys: Hashes
    overdue: int


def read(store: Store, *, due_before: int) -> Listed | str:
    """What it lists, or why this read proves nothing. Entries of before `due_before` are overdue.

    Raises StorageUnreadable.
    """
    before = store.facts(layout.STATE)
    if before is None:
        return "missing"
    try:
        listed, size = _scan(store, due_before)
        if listed is None:
            listed, size = _parsed(store, due_before)
    except StateMalformed as error:
        return error.problem
    after = store.facts(layout.STATE)
    if after is None:
        return "missing"
    return listed if listed is not None and before == after and size == after.size else "changing"


def is_plain(store: Store) -> bool:
    """Whether the state is whole and of the one shape. Raises StateMalformed where it is cut off,
    StorageUnreadable."""
    return _scan(store, 0)[0] is not None


def pieces(store: Store) -> Iterator[bytes]:
    """The state's bytes. Raises StorageUnreadable."""
    if isinstance(store, InPieces):
        yield from store.pieces(layout.STATE, PIECE)
    else:
        yield store.read(layout.STATE) or b""


def _scan(store: Store, due_before: int) -> tuple[Listed | None, int]:
    """What is listed and how many bytes were read; None if it has another shape. Raises
    StateMalformed for what is cut off."""
    reader = _Reader(due_before)
    size, last = 0, b""
    for piece in pieces(store):
        size += len(piece)
        last = (last + piece)[-64:]
        reader.take(piece)
    if reader.finish():
        return Listed(reader.keys, reader.overdue), size
    if not last.rstrip(b" \t\r\n").endswith(b"}"):
        problem = state.PROBLEM_NOT_JSON if last else state.PROBLEM_EMPTY
        raise StateMalformed(problem, f"{layout.STATE} is cut off")
    return None, size


def _parsed(store: Store, due_before: int) -> tuple[Listed | None, int]:
    raw = read_whole(store)
    keys, overdue = Hashes(), 0
    for key, entry in state.parse(raw).entries.items():
        keys.add(key)
        overdue += entry.expiry < due_before and not canary.is_canary(key)
    return Listed(keys, overdue), len(raw)


def read_whole(store: Store) -> bytes:
    """The bytes of a state of another shape; none if there is no file.

    Raises StateTooLarge, StorageUnreadable.
    """
    raw = store.read(layout.STATE, LARGEST_WHOLE + 1) or b""
    if len(raw) > LARGEST_WHOLE:
        msg = f"{layout.STATE} has an unusual shape and is too large to be read beside a registry"
        raise StateTooLarge("too-large", msg)
    return raw


class _Reader:
    """Goes through the pieces; ends at the first byte that it did not expect."""

    def __init__(self, due_before: int) -> None:
        self.keys = Hashes()
        self.overdue = 0
        self._due_before = due_before
        self._due_text = state.format_time(max(due_before, 0))[:19].encode()
        self._buffer = b""
        self._is_started = self._is_ended = self._is_odd = False
        self._dates: dict[bytes, bool] = {}
        self._repository, self._is_repository = "", False

    def take(self, piece: bytes) -> None:
        """The next bytes."""
        if not self._is_odd:
            self._buffer += piece
            self._go(until=LONGEST_ENTRY)

    def finish(self) -> bool:
        """There is no more; whether all of it had the one shape."""
        if not self._is_odd:
            self._go(until=0)
        return self._is_started and self._is_ended and not self._is_odd and not self._buffer

    def _go(self, until: int) -> None:
        at, buffer = 0, self._buffer
        if not self._is_started and buffer:
            self._is_started = True
            if buffer.rstrip(b" \t\r\n") == state.EMPTY and not until:
                self._is_ended, self._buffer = True, b""
                return
            if not buffer.startswith(b"{"):
                self._is_odd = True
                return
            if until and len(buffer) <= 64:
                # `{}` so far, or a first entry that has hardly begun.
                self._is_started = False
                return
            at = 1
        while len(buffer) - at > until and not self._is_ended:
            match = _ENTRY.match(buffer, at)
            if match is None or not self._count(match):
                self._is_odd, self._buffer = True, b""
                return
            at = match.end()
            self._is_ended = not match[7].startswith(b",")
        self._buffer = buffer[at:]
        if self._is_ended and self._buffer.strip(b" \t\r\n"):
            self._is_odd = True
        elif self._is_ended:
            self._buffer = b""

    def _count(self, match: re.Match[bytes]) -> bool:
        repository, digest = match[1].decode(), match[2].decode()
        if repository != self._repository:
            self._repository = repository
            self._is_repository = layout.is_repository(repository)
        if not self._is_a_date(match[3]):
            return False
        if self._is_repository:
            self.keys.add(layout.key(repository, digest))
            is_ours = repository == canary.REPOSITORY
            self.overdue += not is_ours and self._is_overdue(match)
        return True

    def _is_overdue(self, match: re.Match[bytes]) -> bool:
        if match[6] == b"Z":
            return match[3] + match[4] < self._due_text
        text = b"".join((match[3], match[4], match[5] or b"", match[6])).decode()
        expiry = state.parse_time(text)
        return expiry is not None and expiry < self._due_before

    def _is_a_date(self, text: bytes) -> bool:
        is_date = self._dates.get(text)
        if is_date is None:
            try:
                date.fromisoformat(text.decode())
            except ValueError:
                is_date = False
            else:
                is_date = True
            self._dates[text] = is_date
        return is_date
