"""plan(): guards first, then the objects every cache has, then the one step of each member, then the status."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pullthrough.gc import table
from pullthrough.gc.observation import Pod
from pullthrough.models import constants, quantities
from pullthrough.models.cache import GcMode, InvalidCache, PullThroughCache, Retention
from pullthrough.models.plan import Action, Create, Delete, Plan
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import Object, Ref, Snapshot
from pullthrough.planning import observe, ownership, pods, status, steps
from pullthrough.planning.observe import Decided, MemberFacts
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
            available=any(
                pods.is_registry(p) and pods.is_ready(p) for p in snapshot.of_kind("Pod")
            ),
        )
        return _with_events(Plan(status=wanted, summary=f"invalid: {invalid}"), cache_raw)
    return _with_events(_plan(cache_raw, cache, snapshot, settings), cache_raw)


def _plan(
    cache_raw: Object, cache: PullThroughCache, snapshot: Snapshot, settings: Settings
) -> Plan:
    members = observe.members(cache, snapshot, settings)
    found = ownership.obstacle(cache, snapshot, _wanted_refs(cache, members))
    if found is not None:
        available = any(pods.is_ready(facts.pod) for facts in members)
        said = status.blocked(cache_raw, cache.generation, found, snapshot.now, available=available)
        return Plan(
            status=said,
            requeue_after=60.0 if found.stalls else WAIT_FOR_LEAVING,
            summary=f"{found.reason}: {found.message}",
        )
    decided = _decided(members)
    surplus = tuple(_surplus(cache, snapshot))
    said = status.of_members(
        cache_raw, cache, decided, snapshot.now, refusal=snapshot.refusal, leaving=len(surplus)
    )
    wants_report = tuple(name for one in decided for name in _wants_report(one.facts, snapshot))
    if cache.spec.suspend:
        return Plan(status=said, wants_report=wants_report, summary="suspended")
    outcomes = [
        steps.outcome(cache, one.facts, one.step, snapshot.now, settings) for one in decided
    ]
    actions = tuple(
        _actions(cache, decided, outcomes, surplus, snapshot=snapshot, settings=settings)
    )
    live = [ref for one in decided for ref in _seen_live(cache, one)]
    waits = [_requeue(one.facts, out) for one, out in zip(decided, outcomes, strict=True)]
    return Plan(
        actions=actions,
        confirm=tuple(dict.fromkeys((*_unconfirmed(snapshot, actions), *live))),
        status=said,
        requeue_after=min((wait for wait in waits if wait is not None), default=None),
        wants_report=wants_report,
        wants_users=tuple(name for one in decided for name in _wants_users(one, snapshot)),
        summary=", ".join(
            f"{one.facts.name}: {one.step.value} ({one.row.name})" for one in decided
        ),
    )


def _decided(members: Iterable[MemberFacts]) -> tuple[Decided, ...]:
    """One row a member; the first that is to be disturbed takes the turn from those after it."""
    decided: list[Decided] = []
    for facts in members:
        is_taken = any(one.step in table.TAKES_THE_TURN and _serves(one.facts) for one in decided)
        seen = observe.without_turn(facts) if is_taken else facts
        decided.append(Decided(facts=seen, row=table.matching_row(seen.observation)))
    return tuple(decided)


def _serves(facts: MemberFacts) -> bool:
    return facts.observation.pod is Pod.READY


def _unconfirmed(snapshot: Snapshot, actions: Iterable[Action]) -> tuple[Ref, ...]:
    """What is to be made because it was not seen. All are read live first, so that somebody else's object of one of the
    names is found before anything is made beside it."""
    absent = [
        Ref(action.desired["kind"], action.desired["metadata"]["name"])
        for action in actions
        if isinstance(action, Create)
    ]
    return tuple(ref for ref in absent if ref not in snapshot.confirmed_absent)


def _seen_live(cache: PullThroughCache, one: Decided) -> tuple[Ref, ...]:
    """What a decision to stop a serving registry was made from: the informer's view of it may be late."""
    if one.step not in table.IRREVERSIBLE:
        return ()
    seen = [Ref(constants.KIND, cache.name)]
    seen += [
        Ref(obj["kind"], obj["metadata"]["name"])
        for obj in (one.facts.stateful_set, one.facts.pod, one.facts.job)
        if obj is not None
    ]
    return tuple(seen)


def _actions(
    cache: PullThroughCache,
    decided: tuple[Decided, ...],
    outcomes: list[steps.Outcome],
    surplus: Iterable[Object],
    *,
    snapshot: Snapshot,
    settings: Settings,
) -> Iterable[Action]:
    """In an order in which any one may be the last: what others need comes first, deletions last."""
    yield from _written(snapshot, objects.cache_service(cache))
    yield from _budget(cache, snapshot)
    growth: list[Action] = []
    for one, outcome in zip(decided, outcomes, strict=True):
        yield from _member(cache, one.facts, outcome, growth, snapshot=snapshot, settings=settings)
    yield from _obsolete_jobs(cache, snapshot, [one.facts for one in decided])
    for obj in surplus:
        yield Delete(
            ref=Ref(obj["kind"], obj["metadata"]["name"]),
            uid=obj["metadata"]["uid"],
            resource_version=str(obj["metadata"]["resourceVersion"]),
            reason="its member is no longer asked for",
        )
    configs = {objects.config_map(cache, outcome.roll)["metadata"]["name"] for outcome in outcomes}
    yield from _obsolete_configs(cache, snapshot, configs)
    # Last: a class that cannot expand refuses it, and nothing else may wait for that.
    yield from growth


def _member(
    cache: PullThroughCache,
    facts: MemberFacts,
    outcome: steps.Outcome,
    growth: list[Action],
    *,
    snapshot: Snapshot,
    settings: Settings,
) -> Iterable[Action]:
    """One member's objects; what its claim is to grow by is left in `growth`."""
    for desired in (
        objects.member_service(cache, facts.ordinal),
        objects.config_map(cache, outcome.roll),
    ):
        yield from _written(snapshot, desired)
    claim = tuple(_claim(cache, facts))
    yield from claim
    yield from outcome.before
    if facts.stateful_set is not None or outcome.creates:
        yield from _stateful_set(cache, facts, outcome, settings)
    if not claim:
        growth += _growth(cache, facts)


def _budget(cache: PullThroughCache, snapshot: Snapshot) -> Iterable[Action]:
    """From two members up; for one alone a budget would only block drains."""
    desired = objects.disruption_budget(cache)
    if cache.spec.replicas > 1:
        yield from _written(snapshot, desired)
        return
    live = snapshot.get(desired["kind"], desired["metadata"]["name"])
    if live is not None and ownership.is_controlled(cache, live):
        yield from _deletion(live, "one member alone needs no budget")


def _deletion(live: Object, reason: str) -> Iterable[Action]:
    metadata = live["metadata"]
    if not metadata.get("deletionTimestamp"):
        yield Delete(ref=Ref(live["kind"], metadata["name"]), uid=metadata["uid"], reason=reason)


def _surplus(cache: PullThroughCache, snapshot: Snapshot) -> Iterable[Object]:
    """What is left of members beyond spec.replicas and is to go. A claim goes under whenScaled: Delete alone, once no
    pod uses it, and only while it says that it is this very member's."""
    for kind in ("StatefulSet", "Service", "Job"):
        for live in snapshot.of_kind(kind):
            if _is_surplus(cache, live) and ownership.is_controlled(cache, live):
                yield live
    if cache.spec.storage.retention_policy.when_scaled is not Retention.DELETE:
        return
    for claim in snapshot.of_kind("PersistentVolumeClaim"):
        used_by = (claim["metadata"].get("annotations") or {}).get(constants.ANNOTATION_USED_BY)
        name = claim["metadata"]["name"]
        in_use = any(pods.names_claim(pod, name) for pod in snapshot.of_kind("Pod"))
        is_left = snapshot.get("StatefulSet", name) is not None
        if _is_surplus(cache, claim) and not in_use and not is_left:
            ordinal = int(claim["metadata"]["labels"][constants.LABEL_MEMBER])
            if used_by == objects.used_by(cache, ordinal):
                yield claim


def _is_surplus(cache: PullThroughCache, live: Object) -> bool:
    number = (live["metadata"].get("labels") or {}).get(constants.LABEL_MEMBER, "")
    is_leaving = bool(live["metadata"].get("deletionTimestamp"))
    return number.isdecimal() and int(number) >= cache.spec.replicas and not is_leaving


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
            # A change waits for its step; another release or settings of the operator are no reason for a roll.
            desired["spec"]["template"] = live["spec"]["template"]
    action = steps.write(live, desired, on_what_was_seen=outcome.rolls)
    if action is not None:
        yield action


def _obsolete_jobs(
    cache: PullThroughCache, snapshot: Snapshot, members: Iterable[MemberFacts]
) -> Iterable[Action]:
    """Older attempts than the newest: left when a pass was cut off between creating and deleting."""
    newest = {facts.job["metadata"]["uid"] for facts in members if facts.job is not None}
    for job in snapshot.of_kind("Job"):
        is_newest = job["metadata"]["uid"] in newest
        if is_newest or _is_surplus(cache, job) or not ownership.is_controlled(cache, job):
            continue
        yield from _deletion(job, "an older attempt")


def _obsolete_configs(
    cache: PullThroughCache, snapshot: Snapshot, wanted: set[str]
) -> Iterable[Action]:
    """Configurations that no template and no pod names any more."""
    used = set(wanted)
    for stateful_set in snapshot.of_kind("StatefulSet"):
        used |= _volume_configs(stateful_set["spec"]["template"]["spec"])
    for pod in snapshot.of_kind("Pod"):
        used |= _volume_configs(pod["spec"])
    for live in snapshot.of_kind("ConfigMap"):
        if live["metadata"]["name"] not in used and ownership.is_controlled(cache, live):
            yield from _deletion(live, "no pod uses it any more")


def _volume_configs(pod_spec: Any) -> set[str]:
    volumes = pod_spec.get("volumes") or []
    return {v["configMap"]["name"] for v in volumes if v.get("configMap")}


def _wanted_refs(cache: PullThroughCache, members: Iterable[MemberFacts]) -> list[Ref]:
    refs = [Ref("Service", names.service(cache.name))]
    if cache.spec.replicas > 1:
        refs.append(Ref("PodDisruptionBudget", names.service(cache.name)))
    for facts in members:
        config = objects.config_map(cache, facts.roll)["metadata"]["name"]
        refs += [
            Ref("PersistentVolumeClaim", facts.name),
            Ref("Service", facts.name),
            Ref("ConfigMap", config),
            Ref("StatefulSet", facts.name),
        ]
    return list(dict.fromkeys(refs))


def _wants_report(facts: MemberFacts, snapshot: Snapshot) -> tuple[str, ...]:
    """Ask the keeper where a decision or the status needs it, and it has not been asked in this pass."""
    if facts.name in snapshot.reports or not pods.is_ready(facts.pod):
        return ()
    on = facts.observation.wanted is GcMode.ENABLED or facts.roll.mode is GcMode.ENABLED
    return (facts.name,) if on else ()


def _wants_users(one: Decided, snapshot: Snapshot) -> tuple[str, ...]:
    """No watch shows other people's pods, so they are looked for where it counts."""
    is_known = one.facts.name in snapshot.users
    return () if is_known or one.step not in table.COUNTS_ON_THE_STORAGE else (one.facts.name,)


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
