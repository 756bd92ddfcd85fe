"""A set of strings in eight bytes each: the keeper's memory must not grow with what is cached.

100,000 digests in a `set` are 17 MB. Here each is its 64-bit hash, which Python salts anew in each
process: that two of 100,000 are the same happens once in four thousand million starts, and the
next start would tell them apart. Whoever asks must bear such a "yes" that is wrong: something that
should go stays until then. A "no" is always right.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Hashable

_MASK = (1 << 64) - 1


class Hashes:
    """What was added; filled first, asked afterwards."""

    __slots__ = ("_is_sorted", "_values")

    def __init__(self) -> None:
        self._values = array("Q")
        self._is_sorted = True

    def __len__(self) -> int:
        """How many were added, the same one twice counted twice."""
        return len(self._values)

    def add(self, what: Hashable) -> None:
        """Remember it."""
        self._values.append(hash(what) & _MASK)
        self._is_sorted = False

    def __contains__(self, what: Hashable) -> bool:
        """Whether it was added."""
        if not self._is_sorted:
            self._values = array("Q", sorted(self._values))
            self._is_sorted = True
        value = hash(what) & _MASK
        at = bisect_left(self._values, value)
        return at < len(self._values) and self._values[at] == value
