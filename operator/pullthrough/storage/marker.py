"""Whose storage it is, and how the last start left it: marker.json and start.json.

The marker is written once, by the first `prepare` on empty storage. Content of another upstream is
refused for ever: one registry's images would be served as another's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pullthrough.storage import inventory, layout
from pullthrough.storage.errors import (
    StorageBelongsToOtherUpstream,
    StorageFull,
    StorageUnmarked,
)
from pullthrough.storage.store import Store, replace

FORMAT = 1
MARKER = f"{layout.OURS}/marker.json"
START = f"{layout.OURS}/start.json"
LARGEST = 1 << 16
"""Bytes that are read of either: they hold a few hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a `prepare` did at its end; read by the next one and by the keeper.

    `ttl` is a Go duration, `time` RFC 3339; `uncovered` artifacts are left to the keeper; `problem`
    is a sentence for people or None; `canary` the digest that the scheduler must delete, or None.
    """

    template: str
    series: str
    gc: str
    ttl: str
    time: str
    canary: str | None
    uncovered: int
    problem: str | None


def upstream_host(store: Store) -> str | None:
    """The host in the marker; None if there is no marker, or none that can be understood."""
    content = _parse(store.read(MARKER, LARGEST))
    host = content.get("upstreamHost") if content and content.get("format") == FORMAT else None
    return host if isinstance(host, str) else None


def check(store: Store, host: str, *, adopt_unmarked: bool) -> bool:
    """Whether the storage is this upstream's. True: marked so. False: empty, or to be adopted.

    Raises StorageBelongsToOtherUpstream, StorageUnmarked, StorageUnreadable.
    """
    found = upstream_host(store)
    if found == host:
        return True
    if found is not None:
        msg = (
            f"the storage holds what was cached from {found}, and this cache is of {host}: use"
            " another volume, or empty this one"
        )
        raise StorageBelongsToOtherUpstream(msg)
    if inventory.holds_content(store) and not adopt_unmarked:
        msg = (
            f"the storage holds content and no marker says that it came from {host}: if it did,"
            " say so with --adopt-unmarked; otherwise use another volume"
        )
        raise StorageUnmarked(msg)
    return False


def mark(store: Store, host: str) -> None:
    """Write the marker. Raises StorageFull, StorageNotWritable."""
    content = json.dumps({"format": FORMAT, "upstreamHost": host})
    replace(store, MARKER, content.encode())


def read_start(store: Store) -> Start | None:
    """How the last start left the storage; None if nothing readable says so."""
    content = _parse(store.read(START, LARGEST))
    if content is None:
        return None
    texts = {name: content.get(name) for name in ("template", "series", "gc", "ttl", "time")}
    canary, problem = content.get("canary"), content.get("problem")
    uncovered = content.get("uncovered")
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return Start(
        **{name: str(text) for name, text in texts.items()},
        canary=canary if isinstance(canary, str) else None,
        uncovered=uncovered if isinstance(uncovered, int) else 0,
        problem=problem if isinstance(problem, str) else None,
    )


def write_start(store: Store, start: Start) -> None:
    """Write start.json atomically; on a full disk over the old one, which has its block already.

    Raises StorageFull, StorageNotWritable.
    """
    content = json.dumps(asdict(start)).encode()
    try:
        replace(store, START, content)
    except StorageFull:
        store.overwrite(START, content)


def _parse(raw: bytes | None) -> dict[str, Any] | None:
    try:
        content = json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
