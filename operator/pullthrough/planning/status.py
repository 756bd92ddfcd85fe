"""The status of a cache, from scratch every pass: conditions by kstatus' rules, the members, the columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from pullthrough.gc.observation import Job, Pod, Repair
from pullthrough.gc.table import Step
from pullthrough.models import conditions, constants, quantities
from pullthrough.models.cache import GcMode, PullThroughCache
from pullthrough.models.conditions import Condition
from pullthrough.models.plan import Event
from pullthrough.models.snapshot import Object, Refusal
from pullthrough.planning import jobs, observe, pods
from pullthrough.planning.observe import Decided, MemberFacts
from pullthrough.planning.ownership import Obstacle
from pullthrough.rendering import labels, names


def blocked(
    cache_raw: Object,
    generation: int,
    why: Obstacle,
    now: datetime,
    *,
    available: bool = False,
) -> dict[str, Any]:
    """The status of a cache of which nothing may be written now: it needs a person, or waits for what passes by itself."""
    kind = conditions.STALLED if why.stalls else conditions.RECONCILING
    serves = conditions.TRUE if available else conditions.FALSE
    return _status(
        cache_raw,
        generation,
        [
            _c(kind, conditions.TRUE, why.reason, why.message),
            _c(conditions.READY, conditions.FALSE, why.reason, why.message),
            _c(
                conditions.AVAILABLE,
                serves,
                "MembersReady" if available else why.reason,
                "" if available else why.message,
            ),
            _c(conditions.MIGRATING, conditions.FALSE, why.reason, why.message),
        ],
        now,
    )


def of_members(
    cache_raw: Object,
    cache: PullThroughCache,
    decided: Sequence[Decided],
    now: datetime,
    *,
    refusal: Refusal | None = None,
    leaving: int = 0,
) -> dict[str, Any]:
    """The whole status of a cache whose members' next steps are these, or were and one was refused; `leaving` objects
    of members that are no longer asked for are still there."""
    migrating = _one(
        [_migrating(cache, one.facts, one.step) for one in decided],
        decided,
        by=lambda c: (c.status != conditions.TRUE, c.reason in _AT_REST),
    )
    found = [
        _available(decided),
        migrating if refusal is None else _migrating_refused(refusal),
        *_ready_conditions(cache, decided, refusal, leaving),
    ]
    status = _status(cache_raw, cache.generation, found, now)
    status["endpoint"] = names.endpoint(cache.name, cache.namespace, constants.REGISTRY_PORT)
    status["replicas"] = sum(one.facts.stateful_set is not None for one in decided)
    status["readyReplicas"] = sum(pods.is_ready(one.facts.pod) for one in decided)
    selector = sorted(labels.registry_selector(cache).items())
    status["selector"] = ",".join(f"{name}={value}" for name, value in selector)
    status["gc"] = _gc_column(decided, migrating)
    status["members"] = [_member(cache, one.facts, one.step) for one in decided]
    times = [one.facts.roll.collected_by for one in decided]
    collected_by = max((time for time in times if time is not None), default=None)
    if collected_by is not None:
        status["collectedBy"] = collected_by
    return status


_AT_REST = frozenset({"MigrationCompleted", "GarbageCollectionDisabled"})


def _one(
    found: Sequence[Condition], decided: Sequence[Decided], by: Callable[[Condition], Any]
) -> Condition:
    """The first of the members' conditions in the order `by`, naming its member where there are several."""
    number = min(range(len(found)), key=lambda index: by(found[index]))
    return _naming(found[number], decided[number].facts.name, is_one_of_many=len(decided) > 1)


def _naming(condition: Condition, member: str, *, is_one_of_many: bool) -> Condition:
    if not is_one_of_many or not condition.message or member in condition.message:
        return condition
    return dataclasses.replace(condition, message=f"{member}: {condition.message}")


def events(old: Sequence[Any], new: Sequence[Any]) -> tuple[Event, ...]:
    """At most one event per transition of a condition's status or reason."""
    before = {c["type"]: (c["status"], c["reason"]) for c in old}
    posted: dict[str, Event] = {}
    for c in new:
        if c["type"] == conditions.AVAILABLE or before.get(c["type"]) == (c["status"], c["reason"]):
            continue
        if c["type"] not in before and c["status"] != conditions.TRUE:
            continue
        bad = c["type"] == conditions.STALLED or c["reason"] in _BAD_REASONS
        posted.setdefault(
            c["reason"],
            Event(type="Warning" if bad else "Normal", reason=c["reason"], message=c["message"]),
        )
    return tuple(posted[reason] for reason in sorted(posted))


_BAD_REASONS = frozenset(
    {
        "RequestRefused",
        "StateLost",
        "ImagePullFailed",
        "MemberCrashing",
        "MemberUnschedulable",
        "PrepareFailed",
        "MigrationRetrying",
        "MigrationReverted",
        "MigrationFailed",
        "CanaryFailed",
        "Incomplete",
        "WaitingForUpstream",
    }
)


def _available(decided: Sequence[Decided]) -> Condition:
    absent = [one.facts for one in decided if not pods.is_ready(one.facts.pod)]
    if not absent:
        return _c(conditions.AVAILABLE, conditions.TRUE, "MembersReady")
    why = _not_available(absent[0])
    if len(absent) == len(decided):
        return why
    serving = len(decided) - len(absent)
    message = (
        f"{serving} of {len(decided)} members serve; {absent[0].name}: {why.message or why.reason}"
    )
    return _c(conditions.AVAILABLE, conditions.TRUE, "MembersReady", message)


def _not_available(facts: MemberFacts) -> Condition:
    if facts.pod is None:
        return _c(
            conditions.AVAILABLE, conditions.FALSE, "MemberStarting", f"{facts.name} has no pod yet"
        )
    found = pods.problem(facts.pod)
    if found is not None:
        return _c(conditions.AVAILABLE, conditions.FALSE, found.reason, found.message)
    return _c(
        conditions.AVAILABLE,
        conditions.FALSE,
        "MemberStarting",
        f"the pod of {facts.name} is starting",
    )


def _migrating(cache: PullThroughCache, facts: MemberFacts, step: Step) -> Condition:
    seen = facts.observation
    on = seen.wanted is GcMode.ENABLED
    if cache.spec.suspend and seen.member.value != seen.wanted.value:
        return _c(
            conditions.MIGRATING,
            conditions.FALSE,
            "Suspended",
            "spec.suspend is true: the change of gc.mode waits for it to be false",
        )
    if seen.on_trial:
        return _c(conditions.MIGRATING, conditions.TRUE, "MigrationRolling")
    if on and _is_waiting_for_canary(facts):
        return _c(conditions.MIGRATING, conditions.TRUE, "CanaryPending")
    if on and seen.member.value == GcMode.DISABLED.value:
        reason, message = _why_not_on_yet(facts, step)
        if step in (Step.GIVE_UP, Step.STORAGE_IN_USE):
            return _c(conditions.MIGRATING, conditions.FALSE, reason, message)
        return _c(conditions.MIGRATING, conditions.TRUE, reason, message)
    if on:
        return _c(
            conditions.MIGRATING, conditions.FALSE, "MigrationCompleted", "garbage collection is on"
        )
    return _c(conditions.MIGRATING, conditions.FALSE, "GarbageCollectionDisabled")


def _migrating_refused(refusal: Refusal) -> Condition:
    """What is refused is tried again and again; the cache serves on meanwhile."""
    state = conditions.TRUE if refusal.is_dry_run else conditions.FALSE
    reason = "MigrationRetrying" if refusal.is_dry_run else "RequestRefused"
    return _c(conditions.MIGRATING, state, reason, _refused_message(refusal))


def _refused_message(refusal: Refusal) -> str:
    what = f"{refusal.ref.kind} {refusal.ref.name}"
    if refusal.is_dry_run:
        return (
            f"the migration Job's pod would be refused: {refusal.message}. Nothing was changed; the cache serves on "
            "without garbage collection, and this is tried again"
        )
    return f"the API server refuses {what}: {refusal.message}. It is tried again"


def _ready_conditions(
    cache: PullThroughCache, decided: Sequence[Decided], refusal: Refusal | None, leaving: int
) -> list[Condition]:
    """Those of the member that is worst off: one that needs a person first, then one that is not ready."""
    if refusal is not None:
        message = _refused_message(refusal)
        if refusal.is_dry_run:
            return [_c(conditions.READY, conditions.FALSE, "MigrationRetrying", message)]
        return _on_its_way("RequestRefused", message)
    decide = _ready_while_suspended if cache.spec.suspend else _ready
    found = [
        [
            _naming(c, one.facts.name, is_one_of_many=len(decided) > 1)
            for c in decide(cache, one.facts, one.step)
        ]
        for one in decided
    ]
    worst = min(
        found,
        key=lambda said: (
            all(c.type != conditions.STALLED for c in said),
            all(c.status == conditions.TRUE for c in said),
        ),
    )
    is_ready = all(c.status == conditions.TRUE for c in worst)
    if is_ready and leaving and not cache.spec.suspend:
        return _on_its_way("MemberRemoved", f"{leaving} objects of removed members are left")
    return worst


def _is_waiting_for_canary(facts: MemberFacts) -> bool:
    """Rolled with a Job's state, and not proven yet; later rolls plant canaries too, but migrate nothing."""
    if facts.roll.mode is not GcMode.ENABLED or facts.roll.migration is None:
        return False
    has_failed = facts.report is not None and facts.report.canary == "Failed"
    return facts.roll.proven is None and not observe.is_proven(facts) and not has_failed


def _why_not_on_yet(facts: MemberFacts, step: Step) -> tuple[str, str]:
    seen = facts.observation
    if step is Step.GIVE_UP:
        return "MigrationFailed", _last_problem(
            facts, "the registry did not come up with garbage collection on, three times"
        )
    if step is Step.STORAGE_IN_USE:
        return "StorageInUse", _in_use_message(facts)
    if step is Step.WAIT_UPSTREAM:
        return "WaitingForUpstream", _upstream_message(facts)
    if seen.job in (Job.FAILED_WAITING, Job.FAILED_DUE):
        return "MigrationRetrying", _last_problem(facts, "the migration Job failed")
    if step is Step.WAIT_RETRY:
        return "MigrationReverted", ""
    if seen.job is Job.RUNNING:
        hindrance = pods.problem(facts.job_pod) if facts.job_pod is not None else None
        said = f"the migration's pod does not run: {hindrance.message}" if hindrance else ""
        return "MigrationRunning", said
    if step is Step.ROLL_ON or step is Step.ROLL_ON_ALONE:
        return "MigrationRolling", ""
    if step is Step.WAIT_TURN:
        return "MigrationPending", f"{facts.name} waits until the other members serve"
    return "MigrationPending", ""


def _last_problem(facts: MemberFacts, otherwise: str) -> str:
    said = (
        pods.termination_message(facts.job_pod, constants.CONTAINER_MIGRATE)
        if facts.job_pod
        else {}
    )
    detail = said.get("message") or jobs.failure(facts.job) or otherwise
    attempt = f"attempt {jobs.attempt(facts.job)}: " if facts.job is not None else ""
    return f"{attempt}{detail}. The cache serves on without garbage collection"


def _upstream_message(facts: MemberFacts) -> str:
    report = facts.report
    if report is None or report.error:
        why = report.error if report is not None else "the keeper has not answered yet"
        return f"the registry needs its upstream to start, and whether it is reachable is not known: {why}"
    if report.upstream_reachable is None:
        return "the registry needs its upstream to start; the keeper has not probed it yet"
    if report.upstream_reachable:
        age = int(report.upstream_age.total_seconds()) if report.upstream_age is not None else "?"
        return f"the registry needs its upstream to start; the keeper last reached it {age} s ago, and probes it again"
    return f"the registry needs its upstream to start, and it is not reachable: {report.upstream_message}"


def _in_use_message(facts: MemberFacts) -> str:
    users = ", ".join(facts.users)
    return (
        f"claim {facts.name} can be written by somebody else's pod: {users}. Two writers lose each other's TTL state: end "
        "that pod, or let it mount the claim read-only"
    )


def _state_lost_message(facts: MemberFacts, step: Step) -> str:
    lost = f"the keeper of {facts.name} finds that the TTL state was lost or overwritten"
    if step is Step.REPAIR_IN_VAIN:
        return (
            f"{lost}, again, less than an hour after the member was restarted for it: see who else writes to claim "
            f"{facts.name}. The cache serves on; the next restart comes an hour after the last"
        )
    if step is Step.WAIT_UPSTREAM:
        return f"{lost}. The restart that rebuilds it waits: {_upstream_message(facts)}"
    return f"{lost}; the member restarts to rebuild it"


def _ready_while_suspended(
    cache: PullThroughCache, facts: MemberFacts, step: Step
) -> list[Condition]:
    """Nothing is on its way: either a change waits, or what can be said is said."""
    if step not in (Step.REST, Step.WAIT_POD):
        message = "spec.suspend is true, and a change waits for it to be false"
        return [_c(conditions.READY, conditions.FALSE, "Suspended", message)]
    return [c for c in _ready(cache, facts, step) if c.type != conditions.RECONCILING]


def _ready(cache: PullThroughCache, facts: MemberFacts, step: Step) -> list[Condition]:
    seen = facts.observation
    if step is Step.GIVE_UP:
        reason, message = _why_not_on_yet(facts, step)
        return [
            _c(conditions.READY, conditions.FALSE, reason, message),
            _c(conditions.STALLED, conditions.TRUE, reason, message),
        ]
    if step is Step.STORAGE_IN_USE:
        message = _in_use_message(facts)
        return [
            _c(conditions.READY, conditions.FALSE, "StorageInUse", message),
            _c(conditions.STALLED, conditions.TRUE, "StorageInUse", message),
        ]
    if seen.repair is not Repair.NONE:
        message = _state_lost_message(facts, step)
        if step is not Step.REPAIR_IN_VAIN:
            return _on_its_way("StateLost", message)
        return [
            _c(conditions.READY, conditions.FALSE, "StateLost", message),
            _c(conditions.STALLED, conditions.TRUE, "StateLost", message),
        ]
    if seen.pod is not Pod.READY:
        return _not_ready(cache, facts)
    if step is Step.WAIT_TURN and (seen.other_changes or seen.wanted is GcMode.DISABLED):
        return _on_its_way("RollingOut", f"{facts.name} waits until the other members serve")
    if step in (Step.ROLL_OTHER, Step.ROLL_OFF, Step.REVERT, Step.ROLL_ON, Step.ROLL_ON_ALONE):
        reason = "MigrationRolling" if step in (Step.ROLL_ON, Step.ROLL_ON_ALONE) else "RollingOut"
        return _on_its_way(reason, "")
    if seen.job in (Job.FAILED_WAITING, Job.FAILED_DUE) or seen.reverts.value != "None":
        reason, message = _why_not_on_yet(facts, step)
        if reason in ("MigrationRetrying", "MigrationReverted"):
            return [_c(conditions.READY, conditions.FALSE, reason, message)]
    if facts.roll.mode is GcMode.ENABLED:
        found = _collection(facts)
        if found:
            return found
    reduced = _size_reduced(cache, facts)
    if reduced:
        return [
            _c(conditions.READY, conditions.FALSE, "StorageSizeReduced", reduced),
            _c(conditions.STALLED, conditions.TRUE, "StorageSizeReduced", reduced),
        ]
    return [_c(conditions.READY, conditions.TRUE, "Succeeded")]


def _collection(facts: MemberFacts) -> list[Condition]:
    """What keeps garbage collection, though turned on, from being what was asked for; empty if nothing."""
    report = facts.report
    if report is not None and report.canary == "Failed":
        return [_c(conditions.READY, conditions.FALSE, "CanaryFailed")]
    if not observe.is_proven(facts):
        silent = report is not None and report.error
        message = f"the keeper cannot be asked yet: {report.error}" if report and silent else ""
        return _on_its_way("CanaryPending", message)
    if report is None or not (report.uncovered or report.problem):
        return []
    count = f"{report.uncovered} artifacts are" if report.uncovered else "Something may be"
    why = f" ({report.problem})" if report.problem else ""
    message = f"{count} covered by no time to live{why}; the keeper collects them at their age"
    return [_c(conditions.READY, conditions.FALSE, "Incomplete", message)]


def _size_reduced(cache: PullThroughCache, facts: MemberFacts) -> str:
    """A sentence where the spec asks for less than the claim has; empty otherwise."""
    if facts.claim is None:
        return ""
    has = str(facts.claim["spec"]["resources"]["requests"]["storage"])
    asked = cache.spec.storage.volume.size
    if quantities.parse(asked) >= quantities.parse(has):
        return ""
    return (
        f"storage.volume.size is {asked}, and the claim {facts.name} has {has}: a volume cannot shrink. Set the size to "
        f"{has} or more; the cache serves on"
    )


def _not_ready(cache: PullThroughCache, facts: MemberFacts) -> list[Condition]:
    if facts.pod is None:
        pending = _claim_pending(facts)
        return _on_its_way("VolumePending" if pending else "Creating", pending)
    found = pods.problem(facts.pod)
    if found is not None and found.needs_person:
        return [
            _c(conditions.READY, conditions.FALSE, found.reason, found.message),
            _c(conditions.STALLED, conditions.TRUE, found.reason, found.message),
        ]
    if found is not None:
        return _on_its_way(found.reason, found.message)
    if facts.observation.pod is Pod.OUTDATED:
        return _on_its_way("RollingOut", f"the pod of {facts.name} is being replaced")
    return _on_its_way("MemberStarting", f"the pod of {facts.name} is starting")


def _claim_pending(facts: MemberFacts) -> str:
    phase = (facts.claim or {}).get("status", {}).get("phase")
    return f"claim {facts.name} is {phase}" if phase == "Pending" else ""


def _on_its_way(reason: str, message: str) -> list[Condition]:
    return [
        _c(conditions.READY, conditions.FALSE, reason, message),
        _c(conditions.RECONCILING, conditions.TRUE, reason, message),
    ]


def _gc_column(decided: Sequence[Decided], migrating: Condition) -> str:
    if migrating.status == conditions.TRUE:
        return "Migrating"
    rolls = [one.facts.roll for one in decided]
    if all(roll.mode is GcMode.ENABLED for roll in rolls):
        return f"Enabled {rolls[0].ttl}"
    return "Disabled"


def _member(cache: PullThroughCache, facts: MemberFacts, step: Step) -> dict[str, Any]:
    gc: dict[str, Any] = {"mode": facts.roll.mode.value}
    if facts.roll.mode is GcMode.ENABLED:
        gc["ttl"] = facts.roll.ttl
        if facts.roll.collected_by is not None:
            gc["collectedBy"] = facts.roll.collected_by
    member: dict[str, Any] = {
        "name": facts.name,
        "ready": pods.is_ready(facts.pod),
        "endpoint": names.endpoint(facts.name, cache.namespace, constants.REGISTRY_PORT),
        "storage": {"claim": facts.name},
        "gc": gc,
    }
    capacity = (facts.claim or {}).get("status", {}).get("capacity", {}).get("storage")
    if capacity:
        member["storage"]["capacity"] = capacity
    migrating = _migrating(cache, facts, step)
    if migrating.status == conditions.TRUE or step is Step.GIVE_UP:
        migration: dict[str, Any] = {"phase": migrating.reason.removeprefix("Migration")}
        if migrating.message:
            migration["message"] = migrating.message
        if facts.job is not None:
            migration["job"] = facts.job["metadata"]["name"]
            migration["attempt"] = jobs.attempt(facts.job)
        member["migration"] = migration
    return member


def _status(
    cache_raw: Object, generation: int, found: Sequence[Condition], now: datetime
) -> dict[str, Any]:
    old = cache_raw.get("status", {}).get("conditions") or []
    stamped = [
        Condition(
            type=c.type,
            status=c.status,
            reason=c.reason,
            message=c.message,
            observed_generation=generation,
        )
        for c in found
    ]
    return {"observedGeneration": generation, "conditions": conditions.merge(old, stamped, now)}


def _c(kind: str, status: str, reason: str, message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message)
