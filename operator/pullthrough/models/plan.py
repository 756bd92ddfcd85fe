"""The decision of one pass, as a value that one can print, compare and test.

The edge performs `actions` in order and stops at the first that fails (the pass is then tried again), writes the
status once, then posts the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pullthrough.models.snapshot import Object, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """POST a new object. 409 AlreadyExists ends the pass: the next one sees whose it is."""

    desired: Object
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply on an object that is ours; `uid` is the precondition that it is still the same one."""

    desired: Object
    uid: str
    reason: str
    """Names the first difference: ``spec.template: image ...``."""
    resource_version: str = ""
    """Set where the decision must fall with the observation (claiming a volume, rolling a member)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete in the background, with uid (and resourceVersion, if given) as preconditions."""

    ref: Ref
    uid: str
    reason: str
    resource_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """POST a new object with ``dryRun=All``: quotas, policies and admission webhooks say whether they would admit it,
    and nothing is made. A refusal ends the pass before the actions that come after it."""

    desired: Object
    reason: str


Action = Create | Apply | Delete | DryRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One Kubernetes Event about the cache: at most one per transition."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now, what to say, and when to look again."""

    actions: tuple[Action, ...] = ()
    status: Mapping[str, Any] | None = None
    """The whole desired status, or None where nothing may be written (deletion, unreadable object)."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds; None: the next event or resync."""
    wants_report: tuple[str, ...] = ()
    """Member names whose keeper should be asked before the next decision; `reconcile` asks and plans once more."""
    wants_users: tuple[str, ...] = ()
    """Names of claims whose pods, anybody's, must be read live before `actions` may be performed."""
    confirm: tuple[Ref, ...] = ()
    """Refs that must be read live before `actions` may be performed; `reconcile` reads them and plans once more."""
    summary: str = ""
    """One line for the log: the decision and its reason."""
