"""A torn TTL state is a crash loop of the registry (2.8 and 3.0 can tear it), and init containers
do not run again when a container restarts in place. So the keeper rebuilds the file, by a rule that
cannot meet a registry which maintains it: the same malformed bytes for longer than any drain and
start take, and the port closed at every look in between.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pullthrough.storage import expiry, layout, state
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.keeper import entries, survey
from pullthrough.storage.keeper.entries import StateTooLarge
from pullthrough.storage.layout import Artifact, Kind
from pullthrough.storage.store import Facts, Store, replace


class Torn(NamedTuple):
    """A malformed state and since when it has lain there behind a closed port."""

    since: int
    facts: Facts
    hash: bytes


def observe(store: Store, before: Torn | None, *, port_is_open: bool, now: int) -> Torn | None:
    """One look; None when there is nothing to repair or the waiting starts anew.

    The file is read at the first look only; afterwards its facts tell whether it changed. Raises
    StorageUnreadable.
    """
    if port_is_open:
        return None
    facts = store.facts(layout.STATE)
    if facts is None or facts.is_directory:
        return None
    if before is not None and facts == before.facts and before.since <= now:
        return before
    hash_ = _hash_if_malformed(store)
    if hash_ is None or store.facts(layout.STATE) != facts:
        return None
    return Torn(now, facts, hash_)


def is_due(torn: Torn | None, *, now: int, after: int) -> bool:
    """Whether it has lain there for longer than any registry drains and starts."""
    return torn is not None and now - torn.since > after


def rebuilt(store: Store, *, now: int, ttl: int | None) -> bytes:
    """The state for what lies there: nothing expires if garbage collection is off.

    Raises StorageUnreadable.
    """
    if ttl is None:
        return state.EMPTY
    artifacts: dict[str, Kind] = {}

    def remember(_path: str, artifact: Artifact) -> None:
        if layout.is_repository(artifact.repository):
            artifacts[layout.key(artifact.repository, artifact.digest)] = artifact.kind

    survey.look(store, deep=False, on_link=remember)
    digests = len({key.rpartition("@")[2] for key in artifacts})
    rules = expiry.Rules(now=now, ttl=ttl, spread=expiry.default_spread(digests, ttl))
    return state.format(expiry.schedule(artifacts, {}, rules).entries)


def write(store: Store, torn: Torn, content: bytes) -> bool:
    """Replace the torn file, if it still is the one that was watched; False if it is not.

    Raises StorageUnreadable, StorageNotWritable, StorageFull.
    """
    if store.facts(layout.STATE) != torn.facts or _hash_if_malformed(store) != torn.hash:
        return False
    replace(store, layout.STATE, content)
    return True


def _hash_if_malformed(store: Store) -> bytes | None:
    """Of the state's bytes, None if they are fine or none; a large state is not held in memory."""
    try:
        if not entries.is_plain(store):
            state.parse(entries.read_whole(store))
    except StateTooLarge:
        return None
    except StateMalformed:
        hashed = hashlib.sha256()
        for piece in entries.pieces(store):
            hashed.update(piece)
        return hashed.digest()
    return None
