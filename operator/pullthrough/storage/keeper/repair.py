"""A torn TTL state is a crash loop of the registry (2.8 and 3.0 can tear it), and init containers
do not run again when a container restarts in place. So the keeper rebuilds the file, by a rule that
cannot meet a registry which maintains it: the same malformed bytes for longer than any drain and
start take, and the port closed at every look in between.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pullthrough.storage import expiry, layout, state, statefile
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.keeper.survey import Survey
from pullthrough.storage.layout import Kind
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


def rebuilt(survey: Survey, *, now: int, ttl: int | None) -> bytes:
    """The state for what lies there: nothing expires if garbage collection is off."""
    if ttl is None:
        return state.EMPTY
    artifacts: dict[str, Kind] = {
        layout.key(artifact.repository, artifact.digest): artifact.kind
        for artifact in survey.links.values()
        if layout.is_repository(artifact.repository)
    }
    digests = len({artifact.digest for artifact in survey.links.values()})
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
    try:
        raw = statefile.read(store)
    except StateMalformed:
        # Too large to be judged here: a registry with memory enough may live with it.
        return None
    if raw is None:
        return None
    try:
        state.parse(raw)
    except StateMalformed:
        return hashlib.sha256(raw).digest()
    return None
