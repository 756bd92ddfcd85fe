"""What the watches have shown so far: every cache, and its children by the label that names it.

A hint, never the truth: whatever is done because of it carries a precondition or is idempotent. Objects are kept as the
API server gave them, except for `managedFields`, of which only the fact that matters to server-side apply is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pullthrough.cluster.apply import slim_records
from pullthrough.models import constants
from pullthrough.models.snapshot import Object, Ref
from pullthrough.reconcile import Key

Identity = tuple[str, str, str]
"""Kind, namespace, name."""


def identity(obj: Object) -> Identity:
    """Of any object that names its kind."""
    meta = obj["metadata"]
    return obj["kind"], meta.get("namespace", ""), meta["name"]


class InformerCache:
    """Parents by key, children by key and ref. `put` and `drop` say whose pass should run."""

    def __init__(self) -> None:
        self._caches: dict[Key, Object] = {}
        self._children: dict[Key, dict[Ref, Object]] = defaultdict(dict)
        self._owners: dict[Identity, Key] = {}

    def keys(self) -> list[Key]:
        """All caches."""
        return sorted(self._caches)

    def cache(self, key: Key) -> Object | None:
        """The custom resource, if it was seen."""
        return self._caches.get(key)

    def children(self, key: Key) -> Mapping[Ref, Object]:
        """A copy: a pass decides from one moment."""
        return dict(self._children.get(key, {}))

    def identities(self) -> set[Identity]:
        """Everything held, for the sweep."""
        caches = {(constants.KIND, key.namespace, key.name) for key in self._caches}
        return caches | set(self._owners)

    def put(self, obj: Object) -> set[Key]:
        """Take what was seen, unless something newer is here already."""
        kind, namespace, name = identity(obj)
        if kind == constants.KIND:
            key = Key(namespace, name)
            if not _is_older(obj, self._caches.get(key)):
                self._caches[key] = _slim(obj)
            return {key}
        owner = _owner(obj)
        before = self._owners.get((kind, namespace, name))
        if owner is None or before not in (None, owner):
            affected = self.drop(kind, namespace, name)
        else:
            affected = set()
        if owner is None:
            return affected
        ref = Ref(kind, name)
        if not _is_older(obj, self._children[owner].get(ref)):
            self._children[owner][ref] = _slim(obj)
            self._owners[kind, namespace, name] = owner
        return affected | {owner}

    def drop(self, kind: str, namespace: str, name: str) -> set[Key]:
        """It is gone, or no longer ours."""
        if kind == constants.KIND:
            key = Key(namespace, name)
            return {key} if self._caches.pop(key, None) is not None else set()
        owner = self._owners.pop((kind, namespace, name), None)
        if owner is None:
            return set()
        siblings = self._children[owner]
        siblings.pop(Ref(kind, name), None)
        if not siblings:
            del self._children[owner]
        return {owner}

    def settle(self, known: Iterable[Identity], listed: Iterable[Object]) -> set[Key]:
        """Take a whole LIST: put what is there, drop what was known before it began and is not in it.

        Returns the caches of what was dropped: of what is there the watch tells as well.
        """
        affected: set[Key] = set()
        present: set[Identity] = set()
        for obj in listed:
            present.add(identity(obj))
            self.put(obj)
        for ghost in set(known) - present:
            affected |= self.drop(*ghost)
        return affected


def _owner(obj: Object) -> Key | None:
    """The cache that a child names by our label; None for what is not ours."""
    meta = obj["metadata"]
    labels = meta.get("labels") or {}
    name = labels.get(constants.LABEL_CACHE)
    is_managed = labels.get(constants.LABEL_MANAGED_BY) == constants.FIELD_MANAGER
    return Key(meta.get("namespace", ""), name) if name and is_managed else None


def _is_older(obj: Object, held: Object | None) -> bool:
    """Own writes come here before their watch events: an event that was on its way must not undo them.

    Resource versions of one object grow as numbers (Kubernetes KEP-5504); what is no number is taken as it comes.
    """
    if held is None or held["metadata"].get("uid") != obj["metadata"].get("uid"):
        return False
    new, old = (str(one["metadata"].get("resourceVersion", "")) for one in (obj, held))
    return new.isdecimal() and old.isdecimal() and int(new) < int(old)


def _slim(obj: Object) -> Object:
    meta: dict[str, Any] = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    if records := slim_records(obj):
        meta["managedFields"] = records
    return {**obj, "metadata": meta}
