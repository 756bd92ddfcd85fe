"""Which suspects are due, decided purely; and the removal, which looks once more before each.

A suspect is due when it was seen the same, and unchanged, in an earlier walk at least `data_delay`
ago, and is old enough. That one rule gives both what facts demand for links (a 0-byte link may be
a write in progress on 2.8) and the order for data: a link that goes in this pass makes its data a
suspect in the next, and the data goes in one after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pullthrough.storage import inventory, layout
from pullthrough.storage.keeper import survey
from pullthrough.storage.keeper.survey import DATA_LEAKS, UPLOAD_LEAKS, Leak, Suspect
from pullthrough.storage.layout import Artifact, Kind
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import Clock, Facts, Store

LISTING_SHARE = 10
LISTING_AGE = 1 * SECOND
"""See Repositories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """How old what must be; nanoseconds."""

    minimum: int
    upload: int
    delay: int
    job: int = 2 * 3600 * SECOND
    """A Job's result is installed within an hour of its making; this is that with room."""


class Seen(NamedTuple):
    """When a suspect was first seen as it is now."""

    since: int
    leak: Leak
    facts: Facts


Memory = Mapping[str, Seen]
"""Suspects of the walks before, by path."""


class Decision(NamedTuple):
    """What to remove in this pass, and what to remember for the next."""

    due: list[Suspect]
    memory: dict[str, Seen]


class Removed(NamedTuple):
    """What went: one named file."""

    leak: Leak
    bytes: int


def decide(suspects: Iterable[Suspect], memory: Memory, now: int, ages: Ages) -> Decision:
    """The suspects that are due, links before data; pure."""
    due: list[Suspect] = []
    remembered: dict[str, Seen] = {}
    for suspect in suspects:
        before = memory.get(suspect.path)
        is_same = (
            before is not None
            and before.leak is suspect.leak
            and before.facts == suspect.facts
            and before.since <= now
        )
        seen = before if before and is_same else Seen(now, suspect.leak, suspect.facts)
        remembered[suspect.path] = seen
        is_old = now - suspect.youngest >= minimum_age(suspect.leak, ages)
        if is_same and is_old and now - seen.since >= ages.delay:
            due.append(suspect)
    due.sort(key=lambda suspect: suspect.leak in DATA_LEAKS)
    return Decision(due, remembered)


def minimum_age(leak: Leak, ages: Ages) -> int:
    """How old a suspect of this class must be."""
    if leak is Leak.JOB:
        return ages.job
    return ages.upload if leak in UPLOAD_LEAKS else ages.minimum


class Repositories:
    """All repositories, as of now: a link in one that appeared a moment ago keeps its data.

    Listing them takes a few milliseconds for each hundred, so a list is used for ten times as long
    as it took, and for a second at most.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._names: tuple[str, ...] = ()
        self._began: int | None = None
        self._good_for = 0

    def latest(self) -> tuple[str, ...]:
        """Their names. Raises StorageUnreadable."""
        now = self._clock.now()
        if self._began is None or not 0 <= now - self._began < self._good_for:
            self._names = tuple(inventory.repositories(self._store))
            self._began = now
            self._good_for = min(LISTING_SHARE * (self._clock.now() - now), LISTING_AGE)
        return self._names


def remove(store: Store, suspect: Suspect, repositories: Repositories) -> Removed | None:
    """Look once more, then unlink this one file; None if it is no longer what it was.

    Data are unlinked right after the look that found no link. A fill that began before and links
    them after it leaves a link to nothing, which the next pull heals by fetching again. Renaming
    the data aside, looking again and renaming them back (facts 4.2, rule 2) would save that one
    fetch, and no more: while they are aside a pull of the new link sees them gone just the same,
    for as long as the second look takes, and a kill in between leaves them where nothing finds
    them. So it is not done.

    Raises StorageUnreadable, StorageNotWritable.
    """
    facts = store.facts(suspect.path)
    if facts != suspect.facts or not _is_still(store, suspect, repositories):
        return None
    if not store.unlink(suspect.path):
        return None
    return Removed(suspect.leak, facts.size)


def _is_still(store: Store, suspect: Suspect, repositories: Repositories) -> bool:
    """Whether the reason to remove it holds at this instant."""
    match suspect.leak:
        case Leak.PAYLOAD | Leak.ORPHAN:
            return not survey.is_linked(store, suspect.digest, repositories.latest())
        case Leak.DANGLING:
            return store.facts(layout.blob_path(suspect.digest)) is None
        case Leak.TORN:
            data = store.facts(layout.blob_path(suspect.digest))
            return data is not None and data.size == 0
        case Leak.TAG:
            if not layout.is_digest(suspect.digest):
                return True
            revision = Artifact(suspect.repository, suspect.digest, Kind.MANIFEST)
            return store.facts(layout.link_path(revision)) is None
        case Leak.UPLOAD:
            directory = suspect.path.rpartition("/")[0]
            return survey.upload_youngest(store, directory) <= suspect.youngest
        case Leak.BAD | Leak.EXPIRED | Leak.TEMPORARY | Leak.JOB:
            return True
