"""From raw objects to facts about one member, and to the observation that the table decides from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pullthrough import durations
from pullthrough.gc import table
from pullthrough.gc.observation import Job, Member, Observation, Pod, Repair, Reverts
from pullthrough.models import constants
from pullthrough.models.cache import AccessMode, GcMode, PullThroughCache
from pullthrough.models.conditions import format_time, parse_time
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import KeeperReport, Object, Snapshot
from pullthrough.planning import jobs, ownership, pods
from pullthrough.rendering import job as job_rendering
from pullthrough.rendering import names, statefulset
from pullthrough.rendering.roll import Roll

REVERTS_ALLOWED = 3
FIRST_REVERT_BACKOFF = timedelta(seconds=30)
REPAIR_INTERVAL = timedelta(hours=1)
"""Between two restarts for a lost TTL state."""
PREPARE_FACTOR = 10
"""A prepare that runs this many times as long as the migration Job takes the switch back ..."""
PREPARE_PATIENCE = timedelta(minutes=2)
"""... but never before this: prepare gives a clock that is behind a minute of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """One member as it was seen, with what follows from it."""

    ordinal: int
    name: str
    stateful_set: Object | None
    pod: Object | None
    claim: Object | None
    job: Object | None
    """The newest migration Job of this member."""
    job_pod: Object | None
    asked: str
    """Hash of the request that a Job would be made for now."""
    roll: Roll
    """How the member runs now; where it is absent: how it would be created."""
    roll_with_changes: Roll | None
    """The same with every change that is not a switch; None if there is none."""
    report: KeeperReport | None
    users: tuple[str, ...]
    """Names of other people's live pods that can write to the claim, as far as they were looked for."""
    observation: Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A member, and the row of the table that it matches."""

    facts: MemberFacts
    row: table.Row

    @property
    def step(self) -> table.Step:
        """The one thing to do with it now."""
        return self.row.step


def member(
    cache: PullThroughCache, snapshot: Snapshot, ordinal: int, settings: Settings
) -> MemberFacts:
    """Everything about one member."""
    name = names.member(cache.name, ordinal)
    live = snapshot.get("StatefulSet", name)
    pod = snapshot.get("Pod", names.pod(cache.name, ordinal))
    claim = snapshot.get("PersistentVolumeClaim", name)
    roll = _roll(cache, live, claim, settings)
    changed = _with_changes(cache, live, claim, roll, settings)
    generation = int(live["metadata"].get("generation", 0)) if live is not None else 0
    asked = job_rendering.request(cache, ordinal, generation, settings)
    newest = _newest_job(cache, snapshot, ordinal)
    report = snapshot.reports.get(name)
    if report is not None and (pod is None or report.pod_uid != pod["metadata"]["uid"]):
        report = None
    users = ownership.other_users(cache, name, snapshot)
    pod_state = _pod_state(live, pod, roll, snapshot.now)
    observation = Observation(
        wanted=cache.spec.gc.mode,
        member=_member_state(live),
        other_changes=changed is not None,
        pod=pod_state,
        job=jobs.state(
            newest,
            asked=asked,
            ttl=cache.ttl,
            member_node=_node_of(pod) if pod_state is Pod.READY else None,
            now=snapshot.now,
        ),
        upstream_fresh=_is_fresh(report, settings),
        on_trial=_is_on_trial(roll),
        reverts=_reverts(cache, roll, snapshot.now),
        repair=_repair(roll, report, pod_state, snapshot.now),
        storage_in_use=bool(users),
        exclusive_volume=_is_exclusive(cache, claim),
    )
    return MemberFacts(
        ordinal=ordinal,
        name=name,
        stateful_set=live,
        pod=pod,
        claim=claim,
        job=newest,
        job_pod=_pod_of_job(snapshot, newest),
        asked=asked,
        roll=roll,
        roll_with_changes=changed,
        report=report,
        users=users,
        observation=observation,
    )


def members(
    cache: PullThroughCache, snapshot: Snapshot, settings: Settings
) -> tuple[MemberFacts, ...]:
    """Every member that the spec asks for, each with its turn: the others serve, and nothing is done to any of them."""
    alone = [member(cache, snapshot, number, settings) for number in range(cache.spec.replicas)]
    return tuple(
        facts
        if all(_is_settled(other) for other in alone if other is not facts)
        else without_turn(facts)
        for facts in alone
    )


def without_turn(facts: MemberFacts) -> MemberFacts:
    """The same where another member is served first."""
    return dataclasses.replace(
        facts, observation=dataclasses.replace(facts.observation, turn=False)
    )


def _is_settled(facts: MemberFacts) -> bool:
    """Serves, and nothing is being done to it: a failed Job in its back-off holds nobody up."""
    seen = facts.observation
    has_job = seen.job in (Job.RUNNING, Job.OBSTRUCTING, Job.TERMINATING)
    return seen.pod is Pod.READY and not seen.on_trial and not has_job


def template_annotations(stateful_set: Object) -> Mapping[str, str]:
    """Annotations of the pod template: how the member was told to run."""
    template: Mapping[str, Any] = stateful_set["spec"]["template"]
    found: Mapping[str, str] = template.get("metadata", {}).get("annotations") or {}
    return found


def collected_by(facts: MemberFacts, ttl: str, now: datetime) -> str:
    """By when all that was cached before the switch is gone: the Job's own word, or now + ttl."""
    said = (
        pods.termination_message(facts.job_pod, constants.CONTAINER_MIGRATE)
        if facts.job_pod
        else {}
    )
    return str(said.get("collectedBy") or format_time(now + durations.parse_go(ttl)))


def revert_stamp(cache: PullThroughCache, roll: Roll, now: datetime) -> str:
    """The reverted-annotation after one more revert."""
    return f"{cache.generation}/{_revert_count(cache, roll) + 1}/{format_time(now)}"


def retry_after_revert(cache: PullThroughCache, roll: Roll) -> datetime | None:
    """When the next attempt after a revert is due; None if there was none in this generation."""
    count = _revert_count(cache, roll)
    if count == 0 or roll.reverted is None:
        return None
    when = parse_time(roll.reverted.split("/", 2)[2])
    return when + FIRST_REVERT_BACKOFF * (1 << (count - 1))


def _roll(
    cache: PullThroughCache, live: Object | None, claim: Object | None, settings: Settings
) -> Roll:
    if live is None:
        return Roll(
            mode=cache.spec.gc.mode,
            ttl=cache.ttl,
            keeper_image=settings.image,
            adopts_unmarked=_is_to_adopt(claim),
        )
    template = template_annotations(live)
    own = live["metadata"].get("annotations") or {}
    mode = (
        GcMode.ENABLED
        if template.get(constants.ANNOTATION_GC_MODE) == GcMode.ENABLED.value
        else GcMode.DISABLED
    )
    return Roll(
        mode=mode,
        ttl=template.get(constants.ANNOTATION_GC_TTL, cache.ttl),
        keeper_image=_keeper_image(live) or settings.image,
        migration=template.get(constants.ANNOTATION_MIGRATION),
        collected_by=own.get(constants.ANNOTATION_COLLECTED_BY),
        verified=own.get(constants.ANNOTATION_VERIFIED),
        reverted=own.get(constants.ANNOTATION_REVERTED),
        migration_seconds=own.get(constants.ANNOTATION_MIGRATION_SECONDS),
        prepared_again=template.get(constants.ANNOTATION_PREPARED_AGAIN),
        proven=own.get(constants.ANNOTATION_PROVEN),
        adopts_unmarked=constants.ANNOTATION_ADOPT_UNMARKED in template,
    )


def _with_changes(
    cache: PullThroughCache,
    live: Object | None,
    claim: Object | None,
    roll: Roll,
    settings: Settings,
) -> Roll | None:
    """The roll under the present spec, the mode unchanged; None if the template is up to date.

    The ttl of a member without GC plays no part: a patch that turns GC on and sets the ttl must not restart twice.
    What the operator itself brings (the keeper's image and settings, how a template is rendered) moves only together
    with a change of the spec: an operator upgrade alone restarts nothing.
    """
    if live is None:
        return None
    ttl = cache.ttl if roll.mode is GcMode.ENABLED else roll.ttl
    wanted = replaced(roll, ttl=ttl, adopts_unmarked=roll.adopts_unmarked or _is_to_adopt(claim))
    asked = statefulset.asked(cache, wanted)
    if asked == template_annotations(live).get(constants.ANNOTATION_ASKED):
        return None
    return replaced(wanted, keeper_image=settings.image)


def replaced(roll: Roll, **changes: Any) -> Roll:
    """A copy with some values changed."""
    return dataclasses.replace(roll, **changes)


def _is_to_adopt(claim: Object | None) -> bool:
    annotations = (claim or {}).get("metadata", {}).get("annotations") or {}
    return bool(annotations.get(constants.ANNOTATION_ADOPT_UNMARKED) == "true")


def is_proven(facts: MemberFacts) -> bool:
    """Whether the canary of the present template was seen to expire; true where this start had none to plant."""
    if facts.stateful_set is None:
        return False
    template = template_annotations(facts.stateful_set).get(constants.ANNOTATION_TEMPLATE)
    is_told = facts.report is not None and not facts.report.error
    is_passed = is_told and facts.report is not None and facts.report.canary in ("Passed", "None")
    return facts.roll.proven == template or is_passed


def _keeper_image(live: Object) -> str | None:
    containers = live["spec"]["template"]["spec"].get("initContainers") or []
    for container in containers:
        if container["name"] == constants.CONTAINER_KEEPER:
            return str(container["image"])
    return None


def _member_state(live: Object | None) -> Member:
    if live is None:
        return Member.ABSENT
    enabled = template_annotations(live).get(constants.ANNOTATION_GC_MODE) == GcMode.ENABLED.value
    return Member.ENABLED if enabled else Member.DISABLED


def _is_current(live: Object | None, pod: Object) -> bool:
    if live is None or pod["metadata"].get("deletionTimestamp"):
        return False
    key = constants.ANNOTATION_TEMPLATE
    if pods.annotations_of(pod).get(key) != template_annotations(live).get(key):
        return False
    owners = pod["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == live["metadata"]["uid"] for owner in owners)


def _pod_state(live: Object | None, pod: Object | None, roll: Roll, now: datetime) -> Pod:
    if pod is None or (live is None and _is_adoptable(pod)):
        return Pod.NONE
    if not _is_current(live, pod):
        return Pod.OUTDATED
    if pods.is_ready(pod):
        return Pod.READY
    is_failing = pods.has_failed(pod) or _prepare_hangs(pod, roll, now)
    return Pod.FAILING if is_failing else Pod.STARTING


def _prepare_hangs(pod: Object, roll: Roll, now: datetime) -> bool:
    """The Job read the same storage in a tenth of the time, beside the registry even."""
    since = pods.running_since(pod, constants.CONTAINER_PREPARE)
    if since is None or roll.migration_seconds is None:
        return False
    job_took = timedelta(seconds=int(roll.migration_seconds))
    return now - since > max(PREPARE_FACTOR * job_took, PREPARE_PATIENCE)


def _repair(roll: Roll, report: KeeperReport | None, pod: Pod, now: datetime) -> Repair:
    is_asked = report is not None and report.needs_prepare
    if not is_asked or pod is not Pod.READY or roll.mode is not GcMode.ENABLED:
        return Repair.NONE
    if roll.prepared_again is None:
        return Repair.DUE
    last = parse_time(roll.prepared_again)
    return Repair.DUE if now - last >= REPAIR_INTERVAL else Repair.TOO_SOON


def _is_adoptable(pod: Object) -> bool:
    """Left by `kubectl delete --cascade=orphan`: the next StatefulSet of the name takes it, and nothing else ends it."""
    owners = pod["metadata"].get("ownerReferences") or []
    return not owners and not pod["metadata"].get("deletionTimestamp")


def _node_of(pod: Object | None) -> str:
    return str(pod["spec"].get("nodeName", "")) if pod is not None else ""


def _newest_job(cache: PullThroughCache, snapshot: Snapshot, ordinal: int) -> Object | None:
    of_member = [
        job
        for job in snapshot.of_kind("Job")
        if job["metadata"].get("labels", {}).get(constants.LABEL_MEMBER) == str(ordinal)
        and ownership.is_controlled(cache, job)
    ]
    return max(
        of_member,
        key=lambda job: (job["metadata"].get("creationTimestamp") or "", jobs.attempt(job)),
        default=None,
    )


def _pod_of_job(snapshot: Snapshot, job: Object | None) -> Object | None:
    if job is None:
        return None
    for pod in snapshot.of_kind("Pod"):
        owners = pod["metadata"].get("ownerReferences") or []
        if any(owner.get("uid") == job["metadata"]["uid"] for owner in owners):
            return pod
    return None


def _is_exclusive(cache: PullThroughCache, claim: Object | None) -> bool:
    """By the claim that is there, if one is: a retained one keeps the access mode that it was made with."""
    if claim is None:
        return cache.spec.storage.volume.access_mode is AccessMode.READ_WRITE_ONCE_POD
    return AccessMode.READ_WRITE_ONCE_POD.value in claim["spec"].get("accessModes", ())


def _is_fresh(report: KeeperReport | None, settings: Settings) -> bool:
    if report is None or not report.upstream_reachable or report.upstream_age is None:
        return False
    return report.upstream_age <= durations.parse_go(settings.probe_freshness)


def _is_on_trial(roll: Roll) -> bool:
    return (
        roll.mode is GcMode.ENABLED
        and roll.migration is not None
        and roll.migration != roll.verified
    )


def _revert_count(cache: PullThroughCache, roll: Roll) -> int:
    """Reverts in this generation of the cache."""
    parts = (roll.reverted or "").split("/", 2)
    return int(parts[1]) if len(parts) == 3 and parts[0] == str(cache.generation) else 0


def _reverts(cache: PullThroughCache, roll: Roll, now: datetime) -> Reverts:
    count = _revert_count(cache, roll)
    if count == 0:
        return Reverts.NONE
    if count >= REVERTS_ALLOWED:
        return Reverts.EXHAUSTED
    due = retry_after_revert(cache, roll)
    return Reverts.DUE if due is None or now >= due else Reverts.WAITING
