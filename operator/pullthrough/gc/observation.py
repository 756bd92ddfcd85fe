"""What the table decides from: raw objects classified into a handful of closed sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from pullthrough.models.cache import GcMode


class Member(StrEnum):
    """The member's StatefulSet, by the mode in its pod template."""

    ABSENT = "Absent"
    DISABLED = "Disabled"
    ENABLED = "Enabled"


class Pod(StrEnum):
    """The member's pod, of the current template unless it says otherwise."""

    NONE = "None"
    OUTDATED = "Outdated"
    """Of an earlier template: the roll is under way."""
    STARTING = "Starting"
    FAILING = "Failing"
    """prepare or the registry exited non-zero three times, or more, under this template; or prepare has been running ten
    times as long as the migration Job did."""
    READY = "Ready"


class Job(StrEnum):
    """The newest migration Job of the request that would be made now."""

    NONE = "None"
    RUNNING = "Running"
    OBSTRUCTING = "Obstructing"
    """Running while the member's pod is not ready, or is on another node: it could hold the volume there."""
    FAILED_WAITING = "FailedWaiting"
    """Failed; its back-off is not over."""
    FAILED_DUE = "FailedDue"
    SUCCEEDED = "Succeeded"
    STALE = "Stale"
    """Succeeded longer ago than min(1 h, ttl), or made for another request: counts as not run."""
    TERMINATING = "Terminating"


class Reverts(StrEnum):
    """Switches taken back in this generation of the cache."""

    NONE = "None"
    WAITING = "Waiting"
    """The back-off after the last one is not over."""
    DUE = "Due"
    EXHAUSTED = "Exhausted"


class Repair(StrEnum):
    """What the keeper says about the TTL state of a serving member."""

    NONE = "None"
    DUE = "Due"
    """Lost or overwritten: only `prepare` can rebuild it."""
    TOO_SOON = "TooSoon"
    """The same, and less than an hour ago the member was restarted for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One member at one moment. Every combination that `inconsistency` does not refuse can occur."""

    wanted: GcMode
    member: Member
    other_changes: bool = False
    """The template differs from the desired one in more than what a switch changes."""
    pod: Pod = Pod.READY
    job: Job = Job.NONE
    upstream_fresh: bool = False
    """The keeper reached the upstream lately."""
    on_trial: bool = False
    """Rolled with a Job's state, and not seen ready since."""
    reverts: Reverts = Reverts.NONE
    repair: Repair = Repair.NONE
    storage_in_use: bool = False
    """Somebody else's live pod can write to the claim."""
    turn: bool = True
    """The other members serve, and nothing is done to any of them: this one may be disturbed."""
    exclusive_volume: bool = False
    """ReadWriteOncePod: no Job can run beside the registry."""


def inconsistency(seen: Observation) -> str | None:
    """Why this combination can never occur; None if it can."""
    absent = seen.member is Member.ABSENT
    if absent and seen.pod in (Pod.READY, Pod.STARTING, Pod.FAILING):
        return "a pod of the current template needs a StatefulSet that has the template"
    if absent and (seen.other_changes or seen.on_trial or seen.reverts is not Reverts.NONE):
        return "differences, trial and reverts are read off the StatefulSet"
    if seen.on_trial and seen.member is not Member.ENABLED:
        return "only a template with GC on names a migration"
    if seen.on_trial and seen.exclusive_volume:
        return "without a Job no template names a migration"
    if seen.repair is not Repair.NONE and (
        seen.member is not Member.ENABLED or seen.pod is not Pod.READY
    ):
        return "only the keeper beside a registry that serves with GC on asks for a repair"
    if seen.exclusive_volume and seen.storage_in_use:
        return "a volume that only one pod may use has no second user"
    if seen.exclusive_volume and seen.job is not Job.NONE:
        return "no Job is made for a volume that only one pod may use"
    if seen.job is Job.RUNNING and seen.pod is not Pod.READY:
        return "a Job beside a pod that is not ready is Obstructing"
    return None


def all_consistent() -> Iterator[Observation]:
    """Every observation that can occur: some thousands."""
    kinds: dict[str, list[object]] = {
        "wanted": list(GcMode),
        "member": list(Member),
        "pod": list(Pod),
        "job": list(Job),
        "reverts": list(Reverts),
        "repair": list(Repair),
    }
    names = [f.name for f in fields(Observation)]
    domains = [kinds.get(name, [False, True]) for name in names]
    for values in itertools.product(*domains):
        seen = Observation(**dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
        if inconsistency(seen) is None:
            yield seen
