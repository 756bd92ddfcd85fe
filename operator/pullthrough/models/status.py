"""The status of a cache, as far as the CRD must describe it.

A status is written as a plain dictionary by planning and never read back to decide anything; these models exist so that
the API server keeps its fields and ``kubectl explain`` explains them. Every field is optional.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from pullthrough.models import conditions
from pullthrough.models.fields import Int64, Model, Timestamp

NOT_OBSERVED: Final[dict[str, Any]] = {"observedGeneration": -1}
"""Default of a new resource's status: without it kstatus takes a resource that nobody has seen yet for finished."""


def _list_map(key: str, limit: int) -> Any:
    extra: dict[str, Any] = {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    }
    return Field(default=(), max_length=limit, json_schema_extra=extra)


class ConditionStatus(Model):
    """One condition, in the form that all of Kubernetes uses."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """What the condition is about: Available, Migrating, Ready, Reconciling or Stalled."""

    status: Literal["True", "False", "Unknown"]
    """Whether it holds: True, False or Unknown."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Why, as one CamelCase word for programs."""

    message: Annotated[str, StringConstraints(max_length=conditions.MESSAGE_LIMIT)]
    """Why, as a sentence for people, with what to do where something is to be done."""

    observed_generation: Int64 | None = None
    """The metadata.generation that the condition speaks of."""

    last_transition_time: Timestamp
    """When the status last changed."""


class MemberStorage(Model):
    """The storage of a member."""

    claim: str | None = None
    """Name of its PersistentVolumeClaim."""

    capacity: str | None = None
    """Size of the volume, as the claim's status has it."""


class MemberGc(Model):
    """Garbage collection as it is at a member now."""

    mode: str | None = None
    """Mode in which its registry runs: Enabled or Disabled."""

    ttl: str | None = None
    """Time to live with which its registry runs."""

    collected_by: Timestamp | None = None
    """By when everything is gone that was cached before garbage collection was turned on."""

    uncovered: Int64 | None = None
    """Number of artifacts that no time to live covers, as last reported; with mode Enabled it should be 0."""


class MemberMigration(Model):
    """The attempt to turn garbage collection on at a member; present until it is on."""

    phase: str | None = None
    """Pending, Running, Retrying, WaitingForUpstream, Rolling, Reverted or Failed."""

    job: str | None = None
    """Name of its Job, while there is one."""

    attempt: Int64 | None = None
    """Which attempt this is; 1 for the first."""

    message: str | None = None
    """What it found or waits for, with the remedy where one is needed."""


class Member(Model):
    """One registry with its own storage."""

    name: Annotated[str, StringConstraints(max_length=63)]
    """Name of the member: the cache's name and an ordinal."""

    ready: bool | None = None
    """Whether it serves pulls."""

    endpoint: str | None = None
    """Address of this member alone, inside the cluster."""

    storage: MemberStorage | None = None
    """Its storage."""

    gc: MemberGc | None = None
    """Garbage collection as it is at the member now."""

    migration: MemberMigration | None = None
    """The attempt to turn garbage collection on; present until it is on."""


class Status(Model):
    """What the operator last saw. Written by the operator alone, for people and tools to read."""

    observed_generation: Int64 | None = None
    """The metadata.generation that this status speaks of; -1 until the operator has seen the resource."""

    conditions: tuple[ConditionStatus, ...] = _list_map("type", 16)
    """Ready (serves and is as the spec says), Available (serves pulls), Migrating (garbage collection is being turned on);
    Reconciling (on its way) and Stalled (needs a person) are present only while True."""

    endpoint: str | None = None
    """Address of the cache inside the cluster: what container runtimes are to be given as a mirror of the upstream."""

    replicas: Int64 | None = None
    """Number of members that exist."""

    ready_replicas: Int64 | None = None
    """Number of members that serve pulls."""

    selector: str | None = None
    """Label selector of the members' pods, for `kubectl scale` and autoscalers."""

    gc: str | None = None
    """Summary of garbage collection, for example "Enabled 168h", "Migrating" or "Disabled"."""

    collected_by: Timestamp | None = None
    """By when everything is gone, at every member, that was cached before garbage collection was turned on."""

    members: tuple[Member, ...] = _list_map("name", 64)
    """The members, by name."""
