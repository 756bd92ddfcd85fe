"""What the TTL state proves while the registry runs, over several reads. Decisions are pure.

The file is believed only when it is whole and did not change while it was read: 2.8 and 3.0 write
it in place, and 1,640 of the reads during two saves of a large one were empty or torn. "No entry
covers this" needs two good reads at least an interval apart (a save waits behind a storm of
expiries). What is overdue but listed is overdue, not uncovered: Go's timers stop while a virtual
machine is suspended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pullthrough.storage import canary, layout, state, statefile
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.keeper.survey import Leak, Suspect
from pullthrough.storage.layout import Artifact
from pullthrough.storage.state import SECOND, Entry
from pullthrough.storage.store import Facts, Store

SETTLED = 60 * SECOND
"""A fill is saved at the next 5 s tick; a younger artifact without an entry says nothing."""
GUARD_COUNT = 10
GUARD_SHARE = 0.1
"""More uncovered artifacts than both of these is no leak of the stock scheduler: the state was
lost, or a second writer replaced it. Then nothing is removed for want of an entry."""


class LinkSeen(NamedTuple):
    """An artifact without an entry, and its link's facts."""

    path: str
    artifact: Artifact
    facts: Facts

    @property
    def youngest(self) -> int:
        return max(self.facts.mtime, self.facts.ctime)


class Uncovered(NamedTuple):
    """Since when a link, unchanged, has been without an entry on good reads."""

    since: int
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What is known of the storage's coverage; `uncovered` None: no good read yet."""

    covered: int = 0
    uncovered: int | None = None
    overdue: int = 0
    suspects: Mapping[str, Uncovered] = field(default_factory=dict)
    missing_since: int | None = None
    """Since when there has been no state file at all, with artifacts that should have entries."""
    needs_prepare: bool = False
    expired: tuple[Suspect, ...] = ()
    """Links that the backstop takes: to be removed as everything else is, link first."""


def read_good(store: Store) -> dict[str, Entry] | str:
    """The entries, or why this read proves nothing. Raises StorageUnreadable."""
    before = store.facts(layout.STATE)
    try:
        raw = statefile.read(store)
    except StateMalformed as error:
        return error.problem
    after = store.facts(layout.STATE)
    if before is None or raw is None or after is None:
        return "missing"
    if before != after or len(raw) != after.size:
        return "changing"
    try:
        return state.parse(raw).entries
    except StateMalformed as error:
        return error.problem


def is_covered(artifact: Artifact, entries: Mapping[str, Entry]) -> bool:
    """Whether an entry of this artifact's key is there. An entry of the other kind counts: one key
    can be linked as blob and as manifest, and it has one entry."""
    return layout.key(artifact.repository, artifact.digest) in entries


def uncovered_links(
    store: Store, links: Mapping[str, Artifact], entries: Mapping[str, Entry]
) -> Iterable[LinkSeen]:
    """Links without an entry, with their facts; gone ones are left out. Raises StorageUnreadable."""
    for path, artifact in links.items():
        if not is_covered(artifact, entries):
            facts = store.facts(path)
            if facts is not None:
                yield LinkSeen(path, artifact, facts)


def learn(
    before: Coverage,
    *,
    links: int,
    uncovered: Iterable[LinkSeen],
    entries: Mapping[str, Entry],
    now: int,
    ttl: int,
    margin: int,
    interval: int,
) -> Coverage:
    """What one more good read adds; pure."""
    bare = list(uncovered)
    suspects: dict[str, Uncovered] = {}
    confirmed: list[LinkSeen] = []
    settled = 0
    for link in bare:
        known = before.suspects.get(link.path)
        is_same = known is not None and known.facts == link.facts
        since = known.since if known is not None and is_same else now
        suspects[link.path] = Uncovered(since, link.facts)
        if now - link.youngest < SETTLED:
            continue
        settled += 1
        if now - since >= interval:
            confirmed.append(link)
    needs_prepare = len(confirmed) > max(GUARD_COUNT, GUARD_SHARE * links)
    expired = [link for link in confirmed if now - link.youngest > ttl + margin]
    return Coverage(
        covered=links - len(bare),
        uncovered=settled,
        overdue=sum(
            entry.expiry < now - SETTLED
            for key, entry in entries.items()
            if not canary.is_canary(key)
        ),
        suspects=suspects,
        needs_prepare=needs_prepare,
        expired=() if needs_prepare else tuple(map(_expired, expired)),
    )


def learn_missing(before: Coverage, *, settled: int, now: int, interval: int) -> Coverage:
    """What a read adds that found no file. It removes nothing; if it lasts, a start must rebuild it.

    `settled` counts artifacts old enough to have been saved: an unused cache has no file either.
    """
    since = before.missing_since if before.missing_since is not None else now
    is_lost = settled > 0 and now - since >= interval
    return Coverage(
        missing_since=since if settled else None, needs_prepare=before.needs_prepare or is_lost
    )


def learn_nothing(before: Coverage) -> Coverage:
    """After a read that proves nothing: as before, and nothing to remove."""
    return Coverage(
        covered=before.covered,
        uncovered=before.uncovered,
        overdue=before.overdue,
        suspects=before.suspects,
        missing_since=before.missing_since,
        needs_prepare=before.needs_prepare,
    )


def _expired(link: LinkSeen) -> Suspect:
    artifact = link.artifact
    return Suspect(
        Leak.EXPIRED,
        link.path,
        artifact.digest,
        artifact.repository,
        link.facts,
        link.youngest,
    )
