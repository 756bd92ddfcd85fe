"""When what expires. Pure: the same artifacts, entries and times give the same schedule.

`expiry = base + ttl - spread * f(digest)`, f = the digest's first 64 bits / 2^64. The spread lies
inside the ttl, so everything is gone by base + ttl, and one digest has one time in all
repositories: the first expiry deletes the data for all of them
(v3.1.1:registry/proxy/proxyregistry.go:68-94). All times are nanoseconds since 1970, all spans
nanoseconds.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pullthrough.storage.layout import Kind
from pullthrough.storage.state import Entry

SECOND = 1_000_000_000
RATE = 50
"""Deletions per second that any storage bears: local disks do 1,500, network file systems 12-20
times a few workers. The scheduler holds its one lock for each (scheduler.go:176-205)."""
SHORTEST_SPREAD = 60 * SECOND
SOON = 10 * SECOND
"""What should have expired while the cache was stopped goes this long after the start, and later:
the registry first gets its breath."""
BURST = 10 * SECOND
"""Entries that expire within this time count as firing together (memory)."""


class Fate(enum.Enum):
    """Why an artifact has the expiry that it has."""

    KEPT = "kept"
    ADDED = "added"
    SOON = "soon"
    MOVED = "moved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a schedule is made from besides the artifacts.

    `link_times` (key -> the link's mtime) only on the start that changes the ttl.
    """

    now: int
    ttl: int
    spread: int
    rate: int = RATE
    link_times: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The complete entries for the artifacts given, and what differs from the entries before."""

    entries: dict[str, Entry]
    added: int
    """Artifacts that no entry covered."""
    changed: int
    """Entries that are new or have another time or kind than before."""


def default_spread(digests: int, ttl: int, rate: int = RATE) -> int:
    """As long as deleting that many takes, at least a minute, at most half the ttl."""
    return min(max(digests * SECOND // rate, SHORTEST_SPREAD), ttl // 2)


def clamp_spread(spread: int, ttl: int) -> int:
    """A spread that somebody asked for, at most half the ttl and not negative."""
    return max(0, min(spread, ttl // 2))


def fraction(digest: str) -> int:
    """f(digest) * 2^64: the digest's first 64 bits."""
    start = digest.index(":") + 1
    return int(digest[start : start + 16], 16)


def spread_back(span: int, digest: str) -> int:
    """The part of a span, in [0, span), by which this digest expires before its end."""
    return span * fraction(digest) >> 64


def schedule(
    artifacts: Mapping[str, Kind],
    entries: Mapping[str, Entry],
    rules: Rules,
    *,
    either_kind: Collection[str] = (),
) -> Schedule:
    """Entries for all artifacts (key -> kind).

    Kept: now < expiry <= now + ttl. Past: soon, or like missing if more than half are past. Later
    than now + ttl, of the wrong kind, or none: missing. Where entries of one digest differ, the
    latest holds for all. `either_kind` are keys linked as blob *and* manifest: an entry of either
    kind covers them.
    """
    latest = rules.now + rules.ttl
    times: dict[str, int] = {}
    past: list[str] = []
    covered = 0
    for key, kind in artifacts.items():
        entry = entries.get(key)
        if entry is None or (entry[1] is not kind and key not in either_kind):
            continue
        covered += 1
        expiry = entry[0]
        digest = key[key.rindex("@") + 1 :]
        if rules.link_times is not None:
            expiry = _after_change(key, digest, expiry, rules)
        if expiry <= rules.now:
            past.append(key)
            continue
        if expiry > latest:
            continue
        if expiry > times.get(digest, 0):
            times[digest] = expiry
    if past and 2 * len(past) <= covered:
        window = min(len(past) * SECOND // rules.rate, rules.ttl - SOON)
        for key in past:
            digest = key[key.rindex("@") + 1 :]
            soon = rules.now + SOON + (max(window, 0) * fraction(digest) >> 64)
            times.setdefault(digest, min(soon, latest))
    scheduled: dict[str, Entry] = {}
    added = changed = 0
    for key, kind in artifacts.items():
        digest = key[key.rindex("@") + 1 :]
        time = times.get(digest)
        if time is None:
            time = times[digest] = latest - spread_back(rules.spread, digest)
        entry = entries.get(key)
        is_right_kind = entry is not None and (entry[1] is kind or key in either_kind)
        if entry is not None and is_right_kind and entry[0] == time:
            scheduled[key] = entry
            continue
        changed += 1
        added += not is_right_kind
        scheduled[key] = Entry(time, entry[1] if entry is not None and is_right_kind else kind)
    return Schedule(entries=scheduled, added=added, changed=changed)


def _after_change(key: str, digest: str, expiry: int, rules: Rules) -> int:
    """An old expiry under a new ttl: clamped to [min(link time + ttl, now + ttl), now + ttl].

    What is cut off at either end is spread within the bounds: links of a restored backup share one
    time, and entries of a longer ttl would all end at the upper bound.
    """
    assert rules.link_times is not None
    latest = rules.now + rules.ttl
    link_time = rules.link_times.get(key)
    earliest = rules.now if link_time is None else min(link_time + rules.ttl, latest)
    if expiry > latest:
        return max(earliest, latest - spread_back(rules.spread, digest))
    if expiry < earliest:
        return earliest + spread_back(min(rules.spread, latest - earliest), digest)
    return expiry


def densest(entries: Mapping[str, Entry], window: int = BURST) -> int:
    """How many entries at most expire within any `window`."""
    times = sorted(entry[0] for entry in entries.values())
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] > window:
            first += 1
        most = max(most, last - first + 1)
    return most
