"""The registry's port and the canary.

The canary is an artifact of a few bytes that the scheduler must delete right after the start. Only
link *and* data gone prove that scheduler, delete switch, permissions and driver work: with deletion
off its entry vanishes all the same.
"""

from __future__ import annotations

import enum
import socket

from pullthrough.storage import canary, layout
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import Store

PATIENCE = 60 * SECOND
"""So long after the registry's port opened may the canary live."""


class Canary(enum.Enum):
    """What became of it; the value is what the report says."""

    NONE = "None"
    """This start had none."""
    PENDING = "Pending"
    PASSED = "Passed"
    FAILED = "Failed"


def is_open(address: tuple[str, int], timeout: float = 1.0) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection(address, timeout=timeout):
            return True
    except OSError:
        return False


def canary_lies_there(store: Store, digest: str) -> bool:
    """Whether its link or its data are still there. Raises StorageUnreadable."""
    planted = layout.Artifact(canary.REPOSITORY, digest, layout.Kind.BLOB)
    paths = (layout.link_path(planted), layout.blob_path(digest))
    return any(store.facts(path) is not None for path in paths)


def judge(*, has_canary: bool, lies_there: bool, opened: int | None, now: int) -> Canary:
    """What the canary's presence says; pure. `opened`: when the port was first seen open."""
    if not has_canary:
        return Canary.NONE
    if opened is None:
        # Gone before the registry ever ran here proves nothing.
        return Canary.PENDING
    if not lies_there:
        return Canary.PASSED
    return Canary.FAILED if now - opened >= PATIENCE else Canary.PENDING
