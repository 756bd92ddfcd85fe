"""Errors of the storage programs. Every one has a reason for programs and a message with a remedy.

StorageError
├── StorageUnreadable               something could not be read (anything but "is not there")
├── StorageNotWritable              read-only, wrong owner, input/output error on a write
│   ├── StorageFull                 no space or quota left
│   └── StorageChanged              somebody else wrote what was to be written over
├── StorageInUse                    a registry writes while it must not run
├── StorageBelongsToOtherUpstream   the marker names another upstream host
├── StorageUnmarked                 content, but no marker that says whose it is
│   ├── StorageMarkerMalformed      a marker, but not one that can be understood
│   └── StorageMarkerNewer          a marker that a newer version of this program wrote
├── MemoryLimitTooLow               the registry would be killed for memory with this state
└── StateMalformed                  scheduler-state.json is not what a registry can start on
"""

from __future__ import annotations


class StorageError(Exception):
    """What a storage program can fail with: a CamelCase `reason`, a sentence, an exit code."""

    reason = "StorageError"
    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StorageUnreadable(StorageError):
    """A file or directory is there and cannot be read; nothing may be concluded from it.

    `symbolic_link` is the link's path where that is why.
    """

    reason = "StorageUnreadable"

    def __init__(self, message: str, symbolic_link: str | None = None) -> None:
        super().__init__(message)
        self.symbolic_link = symbolic_link


class StorageNotWritable(StorageError):
    """A write, rename or removal was refused."""

    reason = "StorageNotWritable"


class StorageFull(StorageNotWritable):
    """There is no space (or quota) for what must be written."""

    reason = "StorageFull"


class StorageChanged(StorageNotWritable):
    """What was to be written over is no longer what was read; it was left as it is now."""

    reason = "StorageChanged"


class StorageInUse(StorageError):
    """Something changed on the storage between two looks: a registry runs on it."""

    reason = "StorageInUse"


class StorageBelongsToOtherUpstream(StorageError):
    """One registry's images would be served as another's."""

    reason = "StorageBelongsToOtherUpstream"
    exit_code = 3


class StorageUnmarked(StorageError):
    """The storage holds content and nothing says which upstream it came from."""

    reason = "StorageUnmarked"
    exit_code = 3


class StorageMarkerMalformed(StorageUnmarked):
    """There is a marker and nobody can tell what it says."""

    reason = "StorageMarkerMalformed"


class StorageMarkerNewer(StorageUnmarked):
    """The marker's format is one of a later version: only that version knows whose it is."""

    reason = "StorageMarkerNewer"


class MemoryLimitTooLow(StorageError):
    """A registry that loads this state would exceed its memory limit and crash-loop."""

    reason = "MemoryLimitTooLow"


class StateMalformed(StorageError):
    """The TTL state cannot be believed; `problem` says why (see pullthrough.storage.state)."""

    reason = "StateMalformed"

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem
