"""plan(): guards first, then the objects every cache has, then the one step of its member, then the status."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pullthrough.gc import table
from pullthrough.models import constants, quantities
from pullthrough.models.cache import GcMode, InvalidCache, PullThroughCache
from pullthrough.models.plan import Action, Create, Delete, Plan
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import Object, Ref, Snapshot
from pullthrough.planning import observe, ownership, pods, status, steps
from pullthrough.planning.observe import MemberFacts
from pullthrough.rendering import names, objects, statefulset

WAIT_FOR_LEAVING = 5.0


def plan(cache_raw: Object, snapshot: Snapshot, settings: Settings) -> Plan:
    """What to do for this cache now. The same arguments give the same plan."""
    metadata = cache_raw["metadata"]
    if metadata.get("deletionTimestamp") or snapshot.namespace_terminating:
        return Plan(summary="leaving: nothing is written")
    try:
        cache = PullThroughCache.parse(cache_raw)
    except InvalidCache as invalid:
        wanted = status.blocked(
            cache_raw,
            int(metadata.get("generation", 0)),
            ownership.Obstacle(reason="InvalidSpec", message=str(invalid), stalls=True),
            snapshot.now,
            # What serves goes on serving, whatever the spec says now.
            available=pods.is_ready(snapshot.get("Pod", names.pod(metadata["name"], 0))),
        )
        return _with_events(Plan(status=wanted, summary=f"invalid: {invalid}"), cache_raw)
    return _with_events(_plan(cache_raw, cache, snapshot, settings), cache_raw)


def _plan(
    cache_raw: Object, cache: PullThroughCache, snapshot: Snapshot, settings: Settings
) -> Plan:
    facts = observe.member(cache, snapshot, 0, settings)
    found = ownership.obstacle(cache, snapshot, _wanted_refs(cache, facts))
    if found is not None:
        said = status.blocked(
            cache_raw, cache.generation, found, snapshot.now, available=pods.is_ready(facts.pod)
        )
        return Plan(
            status=said,
            requeue_after=60.0 if found.stalls else WAIT_FOR_LEAVING,
            summary=f"{found.reason}: {found.message}",
        )
    row = table.matching_row(facts.observation)
    said = status.of_member(
        cache_raw, cache, facts, row.step, snapshot.now, refusal=snapshot.refusal
    )
    wants_report = _wants_report(facts, snapshot)
    if cache.spec.suspend:
        return Plan(status=said, wants_report=wants_report, summary="suspended")
    outcome = steps.outcome(cache, facts, row.step, snapshot.now, settings)
    actions = tuple(_actions(cache, facts, snapshot, outcome, settings))
    return Plan(
        actions=actions,
        confirm=(*_unconfirmed(snapshot, actions), *_seen_live(cache, facts, row.step)),
        status=said,
        requeue_after=_requeue(facts, outcome),
        wants_report=wants_report,
        wants_users=_wants_users(facts, snapshot, row.step),
        summary=f"{row.step.value} ({row.name})",
    )


def _unconfirmed(snapshot: Snapshot, actions: Iterable[Action]) -> tuple[Ref, ...]:
    """What is to be made because it was not seen. All are read live first, so that somebody else's object of one of the
    names is found before anything is made beside it."""
    absent = [
        Ref(action.desired["kind"], action.desired["metadata"]["name"])
        for action in actions
        if isinstance(action, Create)
    ]
    return tuple(ref for ref in absent if ref not in snapshot.confirmed_absent)


def _seen_live(cache: PullThroughCache, facts: MemberFacts, step: table.Step) -> tuple[Ref, ...]:
    """What a decision to stop a serving registry was made from: the informer's view of it may be late."""
    if step not in table.IRREVERSIBLE:
        return ()
    seen = [Ref(constants.KIND, cache.name)]
    seen += [
        Ref(obj["kind"], obj["metadata"]["name"])
        for obj in (facts.stateful_set, facts.pod, facts.job)
        if obj is not None
    ]
    return tuple(seen)


def _actions(
    cache: PullThroughCache,
    facts: MemberFacts,
    snapshot: Snapshot,
    outcome: steps.Outcome,
    settings: Settings,
) -> Iterable[Action]:
    """In an order in which any one may be the last: what others need comes first, deletions last."""
    member = facts.ordinal
    config = objects.config_map(cache, outcome.roll)
    for desired in (objects.cache_service(cache), objects.member_service(cache, member), config):
        yield from _written(snapshot, desired)
    claim = tuple(_claim(cache, facts))
    yield from claim
    yield from outcome.before
    if facts.stateful_set is not None or outcome.creates:
        yield from _stateful_set(cache, facts, outcome, settings)
    yield from _obsolete_jobs(cache, snapshot, facts)
    yield from _obsolete_configs(cache, snapshot, facts, config)
    if not claim:
        # Last: a class that cannot expand refuses it, and nothing else may wait for that.
        yield from _growth(cache, facts)


def _written(snapshot: Snapshot, desired: dict[str, Any]) -> Iterable[Action]:
    live = snapshot.get(desired["kind"], desired["metadata"]["name"])
    action = steps.write(live, desired)
    if action is not None:
        yield action


def _claim(cache: PullThroughCache, facts: MemberFacts) -> Iterable[Action]:
    """The claim: taken over from an earlier cache only as it was seen."""
    if facts.claim is None:
        asked = cache.spec.storage.volume.size
        yield from filter(None, [steps.write(None, objects.claim(cache, facts.ordinal, asked))])
        return
    yield from filter(None, [_claim_of_size(cache, facts.claim, facts.ordinal, _size(facts.claim))])


def _growth(cache: PullThroughCache, facts: MemberFacts) -> Iterable[Action]:
    """The claim grown to what the spec asks for; never shrunk."""
    asked = cache.spec.storage.volume.size
    if facts.claim is None or quantities.parse(asked) <= quantities.parse(_size(facts.claim)):
        return
    yield from filter(None, [_claim_of_size(cache, facts.claim, facts.ordinal, asked)])


def _size(claim: Object) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _claim_of_size(cache: PullThroughCache, live: Object, ordinal: int, size: str) -> Action | None:
    desired = objects.claim(cache, ordinal, size)
    # What was decided when the claim was made cannot change; an earlier cache may have decided otherwise.
    for field in ("accessModes", "storageClassName"):
        if field in live["spec"]:
            desired["spec"][field] = live["spec"][field]
    return steps.write(live, desired, on_what_was_seen=True)


def _stateful_set(
    cache: PullThroughCache, facts: MemberFacts, outcome: steps.Outcome, settings: Settings
) -> Iterable[Action]:
    """The StatefulSet; its template changes only by a step that says so, and drift of it is mended."""
    desired = statefulset.stateful_set(cache, facts.ordinal, outcome.roll, settings)
    live = facts.stateful_set
    if live is not None and not outcome.rolls:
        stamp = desired["spec"]["template"]["metadata"]["annotations"][
            constants.ANNOTATION_TEMPLATE
        ]
        found = observe.template_annotations(live)
        if found.get(constants.ANNOTATION_TEMPLATE) != stamp:
            if facts.roll_with_changes is not None:
                return  # a change waits for its step
            # Rendered by another release or with other settings of the operator: the template stays as it is.
            desired["spec"]["template"] = live["spec"]["template"]
    action = steps.write(live, desired, on_what_was_seen=outcome.rolls)
    if action is not None:
        yield action


def _obsolete_jobs(
    cache: PullThroughCache, snapshot: Snapshot, facts: MemberFacts
) -> Iterable[Action]:
    """Older attempts than the newest: left when a pass was cut off between creating and deleting."""
    for job in snapshot.of_kind("Job"):
        metadata = job["metadata"]
        is_newest = facts.job is not None and metadata["uid"] == facts.job["metadata"]["uid"]
        if is_newest or not ownership.is_controlled(cache, job):
            continue
        if not metadata.get("deletionTimestamp"):
            yield Delete(
                ref=Ref("Job", metadata["name"]), uid=metadata["uid"], reason="an older attempt"
            )


def _obsolete_configs(
    cache: PullThroughCache, snapshot: Snapshot, facts: MemberFacts, config: dict[str, Any]
) -> Iterable[Action]:
    """Configurations that no template and no pod names any more."""
    used = {config["metadata"]["name"], *_configs_of(facts.stateful_set)}
    for pod in snapshot.of_kind("Pod"):
        used |= _volume_configs(pod["spec"])
    for live in snapshot.of_kind("ConfigMap"):
        metadata = live["metadata"]
        is_leaving = bool(metadata.get("deletionTimestamp"))
        if metadata["name"] in used or is_leaving or not ownership.is_controlled(cache, live):
            continue
        ref = Ref("ConfigMap", metadata["name"])
        yield Delete(ref=ref, uid=metadata["uid"], reason="no pod uses it any more")


def _configs_of(stateful_set: Object | None) -> set[str]:
    return _volume_configs(stateful_set["spec"]["template"]["spec"]) if stateful_set else set()


def _volume_configs(pod_spec: Any) -> set[str]:
    volumes = pod_spec.get("volumes") or []
    return {v["configMap"]["name"] for v in volumes if v.get("configMap")}


def _wanted_refs(cache: PullThroughCache, facts: MemberFacts) -> list[Ref]:
    config = objects.config_map(cache, facts.roll)["metadata"]["name"]
    return [
        Ref("PersistentVolumeClaim", facts.name),
        Ref("Service", names.service(cache.name)),
        Ref("Service", facts.name),
        Ref("ConfigMap", config),
        Ref("StatefulSet", facts.name),
    ]


def _wants_report(facts: MemberFacts, snapshot: Snapshot) -> tuple[str, ...]:
    """Ask the keeper where a decision or the status needs it, and it has not been asked in this pass."""
    if facts.name in snapshot.reports or not pods.is_ready(facts.pod):
        return ()
    on = facts.observation.wanted is GcMode.ENABLED or facts.roll.mode is GcMode.ENABLED
    return (facts.name,) if on else ()


def _wants_users(facts: MemberFacts, snapshot: Snapshot, step: table.Step) -> tuple[str, ...]:
    """No watch shows other people's pods, so they are looked for where it counts."""
    is_known = facts.name in snapshot.users
    return () if is_known or step not in table.COUNTS_ON_THE_STORAGE else (facts.name,)


def _requeue(facts: MemberFacts, outcome: steps.Outcome) -> float | None:
    times = [outcome.requeue_after]
    if facts.roll.mode is GcMode.ENABLED and pods.is_ready(facts.pod):
        report = facts.report
        if report is None or report.error or report.canary == "Pending":
            times.append(steps.LOOK_AGAIN if facts.roll.proven else steps.SOON)
        elif report.uncovered or report.problem or report.canary == "Failed":
            times.append(10.0)
    return min((t for t in times if t is not None), default=None)


def _with_events(decided: Plan, cache_raw: Object) -> Plan:
    if decided.status is None:
        return decided
    old = cache_raw.get("status", {}).get("conditions") or []
    posted = status.events(old, decided.status["conditions"])
    return dataclasses.replace(decided, events=posted)
