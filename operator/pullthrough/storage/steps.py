"""Changes to a storage as values: planned from a whole reading, counted, then done one by one.

A plan is complete before its first step is done, so a reading error changes nothing. Each step is
one small change, and their order is such that after any of them the rest is found by a new plan.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pullthrough.storage import canary, inventory, layout
from pullthrough.storage.store import Store, replace
from pullthrough.storage.survey import EXAMPLES, Leak, Progress


class Action(enum.Enum):
    """What a step does."""

    LINK = "link"
    """Make a link file that names the digest in `digest`."""
    UNLINK = "unlink"
    """Remove a file, and the directories that it leaves empty, but not the registry's own."""
    RMDIR = "rmdir"
    """Remove a directory and those in it, if there is no file in any."""
    WRITE = "write"
    """Write the TTL state anew."""


class Step(NamedTuple):
    """One change, why (a class of leak, or `purged`), and how many bytes it gives back (`size`)."""

    action: Action
    path: str
    why: str
    size: int = 0
    digest: str = ""
    content: bytes = b""


_STRUCTURE = frozenset({layout.LAYERS, "_manifests", "revisions", "tags", layout.UPLOADS})


def summary(steps: Iterable[Step]) -> dict[str, Any]:
    """How many of each kind, with bytes and examples; what a plan will do, or has done."""
    classes: dict[str, dict[str, Any]] = {}
    for step in steps:
        if step.action not in {Action.UNLINK, Action.RMDIR}:
            continue
        row = classes.setdefault(step.why, {"count": 0, "bytes": 0, "examples": []})
        row["count"] += 1
        row["bytes"] += step.size
        if len(row["examples"]) < EXAMPLES:
            row["examples"].append(step.path)
    return classes


def perform(store: Store, steps: Sequence[Step], progress: Progress | None = None) -> list[Step]:
    """Do all steps in order; returns those that changed something.

    Raises StorageNotWritable, StorageFull, StorageUnreadable: the steps before it are done.
    """
    done = []
    for number, step in enumerate(steps):
        if _do(store, step):
            done.append(step)
        if progress is not None and number % 100 == 99:
            progress("removed", 100)
    return done


def _do(store: Store, step: Step) -> bool:
    match step.action:
        case Action.LINK:
            replace(store, step.path, step.digest.encode())
            return True
        case Action.WRITE:
            replace(store, step.path, step.content)
            return True
        case Action.RMDIR:
            hollow = _hollow(store, step.path)
            is_gone = hollow is not None and all(map(store.rmdir, hollow))
            if is_gone:
                _climb(store, step.path.rpartition("/")[0])
            return is_gone
        case Action.UNLINK:
            is_gone = store.unlink(step.path)
            _climb(store, step.path.rpartition("/")[0])
            return is_gone


def _climb(store: Store, directory: str) -> None:
    """Remove what a removed file leaves empty: up to where the registry's own structure begins."""
    while _is_prunable(directory) and store.rmdir(directory):
        directory = directory.rpartition("/")[0]


def _is_prunable(directory: str) -> bool:
    above, _, name = directory.rpartition("/")
    if directory.startswith(layout.BLOBS + "/"):
        return above.count("/") > layout.BLOBS.count("/")
    if not directory.startswith(layout.REPOSITORIES + "/"):
        return False
    is_algorithm = above.rpartition("/")[2] in {layout.LAYERS, "revisions"}
    return not is_algorithm and name not in _STRUCTURE and "/_" in directory


def prune(store: Store) -> list[Step]:
    """Remove every repository's directories in which no file is left; children before parents.

    Raises StorageNotWritable, StorageUnreadable.
    """
    done = []
    for repository in sorted(inventory.repositories(store), reverse=True):
        if f"{canary.REPOSITORY}/".startswith(f"{repository}/"):
            # Its link directory is how `prepare` finds what a killed run left of it.
            continue
        for path in _hollow(store, layout.repository_path(repository)) or ():
            if store.rmdir(path):
                done.append(Step(Action.RMDIR, path, Leak.EMPTIED.value))
    return done


def _hollow(store: Store, path: str, depth: int = 6) -> list[str] | None:
    """A directory and all below it, deepest first, if there is no file in any; else None."""
    names = store.names(path)
    if names is None or not depth:
        return None
    found = []
    for name in names:
        below = _hollow(store, f"{path}/{name}", depth - 1)
        if below is None:
            return None
        found += below
    return [*found, path]
