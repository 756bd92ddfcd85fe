"""Whose storage it is, and how the last start left it: marker.json and start.json.

The marker is written once, by the first `prepare` on empty storage. Content of another upstream is
refused for ever: one registry's images would be served as another's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from dataclasses import replace as changed
from typing import Any

from pullthrough.storage import inventory, layout
from pullthrough.storage.errors import (
    StorageBelongsToOtherUpstream,
    StorageFull,
    StorageMarkerMalformed,
    StorageMarkerNewer,
    StorageNotWritable,
    StorageUnmarked,
)
from pullthrough.storage.store import Store, replace

FORMAT = 1
LARGEST = 1 << 16
"""Bytes that are read of either: they hold a few hundred."""
MARKER = f"{layout.OURS}/marker.json"
START = f"{layout.OURS}/start.json"
START_SIZE = 4096
"""start.json is filled up with spaces to this: on a full disk a new one can then be written over
it, in one call, within the block that it has."""
LONGEST_PROBLEM = 2048
"""Characters of start.json's problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a `prepare` did at its end; read by the next one and by the keeper.

    `ttl` is a Go duration, `time` RFC 3339; `uncovered` artifacts are left to the keeper; `problem`
    is a sentence for people or None; `canary` the digest that the scheduler must delete, or None;
    `migration` the Job whose state this start was to install, or None.
    """

    template: str
    series: str
    gc: str
    ttl: str
    time: str
    canary: str | None
    uncovered: int
    problem: str | None
    migration: str | None = None


def upstream_host(store: Store) -> str | None:
    """The host in the marker; None if there is no marker.

    Raises StorageMarkerMalformed, StorageMarkerNewer, StorageUnreadable.
    """
    raw = store.read(MARKER, LARGEST)
    if raw is None:
        return None
    content = _parse(raw) or {}
    host, format_ = content.get("upstreamHost"), content.get("format")
    if type(format_) is int and format_ > FORMAT:
        msg = (
            f"{MARKER} has format {format_} and this version of pullthrough knows {FORMAT}: use the"
            " version that wrote it, or a later one"
        )
        raise StorageMarkerNewer(msg)
    if format_ != FORMAT or not isinstance(host, str) or not host:
        msg = (
            f"{MARKER} cannot be understood (a torn write, most likely), so nothing says which"
            " upstream the content came from: if you know that it is this one,"
            " say so with --adopt-unmarked; otherwise use another volume"
        )
        raise StorageMarkerMalformed(msg)
    return host


def check(store: Store, host: str, *, adopt_unmarked: bool) -> bool:
    """Whether the storage is this upstream's. True: marked so. False: empty, or to be adopted.

    A marker that cannot be understood matters only where there is content that it should be for.
    Raises StorageBelongsToOtherUpstream, StorageUnmarked (or its more exact kinds),
    StorageUnreadable.
    """
    try:
        found = upstream_host(store)
    except StorageMarkerMalformed:
        if inventory.holds_content(store) and not adopt_unmarked:
            raise
        found = None
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
    uncovered, migration = content.get("uncovered"), content.get("migration")
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return Start(
        **{name: str(text) for name, text in texts.items()},
        canary=canary if isinstance(canary, str) else None,
        uncovered=uncovered if isinstance(uncovered, int) else 0,
        problem=problem if isinstance(problem, str) else None,
        migration=migration if isinstance(migration, str) else None,
    )


def write_start(store: Store, start: Start) -> None:
    """Write start.json atomically; on a full disk over the old one, which has its block already.

    Only if it fits in there: a torn record is worse than the old one or none. Raises StorageFull,
    StorageNotWritable, StorageUnreadable.
    """
    problem = None if start.problem is None else start.problem[:LONGEST_PROBLEM]
    content = json.dumps(asdict(changed(start, problem=problem)), ensure_ascii=False).encode()
    try:
        replace(store, START, content.ljust(START_SIZE))
    except StorageFull:
        facts = store.facts(START)
        if facts is None or facts.is_directory or facts.size < len(content):
            raise
        store.overwrite(START, content)
        if (store.read(START) or b"").rstrip() != content:
            msg = f"{START}: what was written reads back differently; check the volume"
            raise StorageNotWritable(msg) from None


def _parse(raw: bytes | None) -> dict[str, Any] | None:
    try:
        content = json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
