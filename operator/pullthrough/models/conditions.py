"""Conditions of a cache: their types, every reason there is, and the rules that keep a status legal.

kstatus (Flux, Helm, Argo CD) reads three of them: ``Ready``, and ``Reconciling`` and ``Stalled``, which are present
only while True. ``Available`` says that pulls are served, ``Migrating`` that garbage collection is being turned on:
waiting for data must not make a deployment time out, so it is a condition of its own.

    Ready        serves, and the spec is realised
    Available    serves pulls
    Reconciling  on its way; vanishes
    Stalled      will not get further without a person; vanishes
    Migrating    garbage collection is being turned on
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

READY: Final = "Ready"
AVAILABLE: Final = "Available"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
MIGRATING: Final = "Migrating"

TYPES: Final = frozenset({READY, AVAILABLE, RECONCILING, STALLED, MIGRATING})
PRESENT_ONLY_WHEN_TRUE: Final = frozenset({RECONCILING, STALLED})

TRUE: Final = "True"
FALSE: Final = "False"
UNKNOWN: Final = "Unknown"

MESSAGE_LIMIT: Final = 32768
"""The CRD's maxLength of a message; longer ones are cut."""

REASONS: Final[Mapping[str, str]] = {
    # Fine.
    "Succeeded": "The cache serves, and everything the spec asks for is in place.",
    "MembersReady": "Every member serves pulls.",
    # On its way.
    "Creating": "The cache's objects are being created.",
    "VolumePending": "A claim is not bound to a volume yet.",
    "MemberStarting": "A member's pod is starting.",
    "MemberUnschedulable": "No node can run a member's pod; the message is the scheduler's.",
    "MemberNotReady": "A member's registry does not answer.",
    "MemberCrashing": "A member's container ends again and again; the message says which and how.",
    "ImagePullFailed": "An image of a member cannot be pulled: correct registry.image or the pull secrets.",
    "PrepareFailed": "The storage could not be made ready for the registry; the message says why.",
    "MemberRemoved": "Members that replicas no longer asks for are being removed.",
    "RollingOut": "A change is being rolled out to the members.",
    "ChildTerminating": "An object of an earlier cache is still being deleted.",
    "RequestRefused": "The API server refused an object, for example by a quota or a policy; the message is its own.",
    "Suspended": "spec.suspend is true: the operator touches nothing.",
    # Turning garbage collection on.
    "GarbageCollectionDisabled": "spec.gc.mode is Disabled: everything cached is kept.",
    "MigrationPending": "Garbage collection will be turned on when the members are ready for it.",
    "MigrationRunning": "The migration Job reads the storage while the registry serves.",
    "MigrationRetrying": "The migration Job failed and will be tried again; nothing was changed.",
    "MigrationRolling": "The member starts again with garbage collection turned on.",
    "MigrationReverted": "The member did not come up with garbage collection on and was taken back; it serves without it.",
    "MigrationFailed": "Turning garbage collection on failed repeatedly and is not tried again until the spec changes.",
    "MigrationCompleted": "Garbage collection is on, and covers everything that was cached before.",
    "WaitingForUpstream": "The upstream must be reachable before the member may be rolled: its registry needs it to start.",
    "StateLost": "The registry's TTL state was lost or overwritten; a restart of the member rebuilds it.",
    "CanaryPending": "A planted artifact is about to expire, which proves that garbage collection works.",
    "CanaryFailed": "A planted artifact did not expire: garbage collection does not work on this storage.",
    "Incomplete": "Some artifacts are not covered by a time to live yet; the keeper collects them later.",
    # Needs a person.
    "InvalidSpec": "The resource cannot be read; the message names the field and the remedy.",
    "NameConflict": "Somebody else's object has a name that the cache needs: rename one of the two.",
    "StorageInUse": "Somebody else's pod can write to the claim: two writers lose each other's TTL state.",
    "StorageBelongsToOtherUpstream": "The storage holds images of another upstream: use another claim or cache name.",
    "StorageUnmarked": "The storage holds content of unknown origin: adopt it explicitly, or use an empty claim.",
    "StorageMarkerMalformed": "The record of whose content the storage holds is damaged: adopt it explicitly.",
    "StorageMarkerNewer": "A later version of the operator has used the storage: use that version.",
    "StorageUnreadable": "A file on the storage cannot be read; the message names it.",
    "StorageNotWritable": "The storage cannot be written: check the volume's permissions.",
    "StorageFull": "There is not enough free space on the volume: enlarge storage.volume.size.",
    "StorageSizeReduced": "storage.volume.size is smaller than the claim: a volume cannot shrink.",
    "MemoryLimitTooLow": "The registry's memory limit is too low for the number of cached artifacts: raise it.",
}
"""Every reason that a condition or an event of ours may carry. Reasons are API: add, never rename."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition as a pass wants it; `merge` gives it its transition time."""

    type: str
    status: str
    reason: str
    message: str = ""
    observed_generation: int = 0
    last_transition_time: datetime | None = None
    """None: decided by `merge`."""

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"{self.type}: not a condition of ours; see conditions.TYPES")
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason}: add the reason to conditions.REASONS with a sentence")

    def as_json(self, transition: str) -> dict[str, Any]:
        """The condition as it stands in a status; an empty message is the reason's sentence."""
        return {
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
            "message": (self.message or REASONS[self.reason])[:MESSAGE_LIMIT],
            "observedGeneration": self.observed_generation,
            "lastTransitionTime": transition,
        }


def merge(
    old: Sequence[Mapping[str, Any]], new: Sequence[Condition], now: datetime
) -> list[dict[str, Any]]:
    """The conditions to write: `new`, by type, keeping the transition time of each whose status did not change.

    What is not in `new` goes away; so do Reconciling and Stalled that are not True.
    """
    before = {condition.get("type"): condition for condition in old}
    wanted = {condition.type: condition for condition in new if _is_written(condition)}
    if len(wanted) != sum(_is_written(condition) for condition in new):
        raise ValueError("a condition type was given twice")
    return [
        condition.as_json(_transition_time(before.get(condition.type), condition, now))
        for _, condition in sorted(wanted.items())
    ]


def check_legal(status: Mapping[str, Any], generation: int | None = None) -> list[str]:
    """What is illegal about a status, as sentences: for tests, which expect an empty list.

    `generation` is the resource's metadata.generation where the caller knows it.
    """
    conditions = status.get("conditions") or []
    types = [condition["type"] for condition in conditions]
    by_type = {condition["type"]: condition for condition in conditions}
    observed = status.get("observedGeneration", -1)
    problems = []
    if types != sorted(types):
        problems.append(f"conditions are not sorted by type: {types}")
    if len(types) != len(set(types)):
        problems.append(f"a condition type occurs twice: {types}")
    if generation is not None and observed > generation:
        problems.append(f"observedGeneration {observed} is ahead of generation {generation}")
    for condition in conditions:
        problems += _problems_of(condition, observed)
    ready = by_type.get(READY, {}).get("status")
    for kind in sorted(PRESENT_ONLY_WHEN_TRUE & by_type.keys()):
        if ready == TRUE:
            problems.append(f"Ready is True beside {kind}")
    if ready == TRUE and by_type.get(AVAILABLE, {}).get("status", TRUE) != TRUE:
        problems.append("Ready is True, but Available is not")
    if conditions and READY not in by_type:
        problems.append("Ready is missing")
    return problems


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time of the API server, or one that `format_time` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _is_written(condition: Condition) -> bool:
    return condition.type not in PRESENT_ONLY_WHEN_TRUE or condition.status == TRUE


def _transition_time(before: Mapping[str, Any] | None, after: Condition, now: datetime) -> str:
    if after.last_transition_time is not None:
        return format_time(after.last_transition_time)
    if before is not None and before.get("status") == after.status:
        return str(before.get("lastTransitionTime") or format_time(now))
    return format_time(now)


def _problems_of(condition: Mapping[str, Any], observed: int) -> list[str]:
    kind, status, reason = condition["type"], condition.get("status"), condition.get("reason", "")
    problems = []
    if kind not in TYPES:
        problems.append(f"{kind}: not a condition of ours")
    if status not in (TRUE, FALSE, UNKNOWN):
        problems.append(f"{kind}: status {status!r} is none of True, False, Unknown")
    if kind in PRESENT_ONLY_WHEN_TRUE and status != TRUE:
        problems.append(f"{kind} is present although it is {status}")
    if not re.fullmatch(r"([A-Z][a-z0-9]*)+", reason):
        problems.append(f"{kind}: reason {reason!r} is not CamelCase")
    if reason not in REASONS:
        problems.append(f"{kind}: reason {reason!r} is not in REASONS")
    if not condition.get("message"):
        problems.append(f"{kind}: no message")
    if condition.get("observedGeneration", 0) > observed:
        problems.append(f"{kind}: observedGeneration is ahead of the status's")
    if not re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", condition.get("lastTransitionTime", "")
    ):
        problems.append(f"{kind}: lastTransitionTime is not RFC 3339 in UTC")
    return problems
