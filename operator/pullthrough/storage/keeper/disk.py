"""How large the volume is and how much of it is free, in bytes and in inodes.

A cache of small artifacts runs out of inodes first: each takes up to six.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """`inodes` 0: the filesystem does not count them."""

    size: int
    free: int
    inodes: int
    inodes_free: int


def look(root: str) -> Disk | None:
    """The volume that a directory lies on, as its user may use it; None where nobody says."""
    try:
        found = os.statvfs(root)
    except OSError:
        return None
    return Disk(
        size=found.f_blocks * found.f_frsize,
        free=found.f_bavail * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_favail,
    )
