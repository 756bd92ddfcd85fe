"""What the TTL state proves while the registry runs, over several reads. Decisions are pure.

The file is believed only when it is whole and did not change while it was read: 2.8 and 3.0 write
it in place, and 1,640 of the reads during two saves of a large one were empty or torn. "No entry
covers this" needs two good reads at least an interval apart (a save waits behind a storm of
expiries). What is overdue but listed is overdue, not uncovered: Go's timers stop while a virtual
machine is suspended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pullthrough.storage import layout
from pullthrough.storage.keeper.entries import Listed
from pullthrough.storage.keeper.hashes import Hashes
from pullthrough.storage.keeper.survey import Leak, Suspect
from pullthrough.storage.layout import Artifact
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import Facts

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


class Bare(NamedTuple):
    """Links, as they were, that a good read at that time had no entries for."""

    time: int
    links: Hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What is known of the storage's coverage; `uncovered` None: nothing yet."""

    covered: int = 0
    uncovered: int | None = None
    overdue: int = 0
    before: tuple[Bare, ...] = ()
    """Good reads, oldest first: the latest that is an interval old, and all since."""
    missing_since: int | None = None
    """Since when there has been no state file at all, with artifacts that should have entries."""
    needs_prepare: bool = False
    expired: tuple[Suspect, ...] = ()
    """Links that the backstop takes: to be removed as everything else is, link first."""


class Learner:
    """What one more good read, at `now`, adds: first each link of the walk that followed it, then
    the sum. It must have come before the walk: what the registry fills meanwhile is too young to
    count, whereas an older walk would miss what an entry has since gone with."""

    def __init__(
        self,
        before: Coverage,
        listed: Listed,
        *,
        now: int,
        ttl: int,
        margin: int,
        interval: int,
        most: int,
    ) -> None:
        self._listed = listed
        self._now = now
        self._too_old = now - ttl - margin
        self._most = most
        reads = [read for read in before.before if read.time <= now]
        latest_old = max((i for i, r in enumerate(reads) if now - r.time >= interval), default=None)
        self._reads = reads
        self._is_confirmable = latest_old is not None
        """Whether any read is old enough for what it and all since had no entry for."""
        self._unbroken = reads[latest_old or 0 :]
        self._bare = Hashes()
        self._settled = 0
        self._confirmed = 0
        self._expired: list[Suspect] = []

    def is_covered(self, artifact: Artifact) -> bool:
        """Whether an entry of this artifact's key is there. One of the other kind counts: one key
        can be linked as blob and as manifest, and it has one entry."""
        return layout.key(artifact.repository, artifact.digest) in self._listed.keys

    def take(self, link: LinkSeen) -> None:
        """A link that no entry covers."""
        as_it_is = (link.path, link.facts)
        self._bare.add(as_it_is)
        if self._now - link.youngest < SETTLED:
            return
        self._settled += 1
        if self._is_confirmable and all(as_it_is in read.links for read in self._unbroken):
            self._confirmed += 1
            if link.youngest < self._too_old and len(self._expired) < self._most:
                self._expired.append(_expired(link))

    def sum(self, links: int) -> Coverage:
        """After a walk that saw so many links."""
        needs_prepare = self._confirmed > max(GUARD_COUNT, GUARD_SHARE * links)
        return Coverage(
            covered=links - len(self._bare),
            uncovered=self._settled,
            overdue=self._listed.overdue,
            before=(*self._unbroken, Bare(self._now, self._bare)),
            needs_prepare=needs_prepare,
            expired=() if needs_prepare else tuple(self._expired),
        )


def learn_missing(before: Coverage, *, settled: int, now: int, interval: int) -> Coverage:
    """What a read adds that found no file. It removes nothing; if it lasts, a start must rebuild it.

    `settled` counts artifacts old enough to have been saved: an unused cache has no file either.
    """
    since = before.missing_since if before.missing_since is not None else now
    is_lost = settled > 0 and now - since >= interval
    return Coverage(
        uncovered=settled,
        missing_since=since if settled else None,
        needs_prepare=before.needs_prepare or is_lost,
    )


def learn_nothing(before: Coverage) -> Coverage:
    """After a read that proves nothing: as before, and nothing to remove."""
    return Coverage(
        covered=before.covered,
        uncovered=before.uncovered,
        overdue=before.overdue,
        before=before.before,
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
