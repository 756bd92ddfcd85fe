"""What one pass may decide from, read once: the only input of planning beside the cache and the settings.

Objects are plain dictionaries as the API server gave them. The informer's view is a hint: where "absent" would lead
to something that cannot be undone, the pass confirms it by a live read and says so in `confirmed_absent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """One object of the cache's namespace: kind and name."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperReport:
    """What the keeper beside a member's registry said, reduced to what a pass decides from."""

    pod_uid: str
    """The pod that was asked: a report of an earlier pod counts for nothing."""
    upstream_reachable: bool | None = None
    """None: not probed yet."""
    upstream_age: timedelta | None = None
    """How long before the report the upstream was last probed, by the keeper's own clock."""
    upstream_message: str = ""
    canary: str = "None"
    """None, Pending, Passed or Failed."""
    uncovered: int | None = None
    """Artifacts that no entry covers; None: not known yet."""
    problem: str = ""
    """What could not be done at the last start, in words for people; empty where nothing failed."""
    needs_prepare: bool = False
    error: str = ""
    """Why the report could not be read; empty when it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An action of this very pass that the API server refused: a quota, a policy, validation."""

    ref: Ref
    message: str
    """The API server's own words."""
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The world of one cache at one moment."""

    now: datetime
    """Timezone-aware, UTC."""
    objects: Mapping[Ref, Object] = field(default_factory=dict)
    """Everything in the namespace that carries our label for this cache or one of the names it would have."""
    confirmed_absent: frozenset[Ref] = frozenset()
    """Refs that a live read in this pass found absent."""
    reports: Mapping[str, KeeperReport] = field(default_factory=dict)
    """By member name; asked for only by `Plan.wants_report`."""
    users: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    """By claim name: every pod, whoever's, that names the claim; asked for only by `Plan.wants_users`."""
    refusal: Refusal | None = None
    """Set when a pass was refused something and is decided again for its status alone."""
    namespace_terminating: bool = False

    def get(self, kind: str, name: str) -> Object | None:
        """The object, or None if it was not seen."""
        return self.objects.get(Ref(kind, name))

    def of_kind(self, kind: str) -> list[Object]:
        """All objects of a kind, by name."""
        return [self.objects[ref] for ref in sorted(self.objects) if ref.kind == kind]
