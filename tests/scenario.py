"""States of a small world, and what passes make of them: `run(state) -> state`, `settle(state) -> state`.

`State` is frozen: a test declares the world, runs, and compares what comes out. Inside a run, `MemoryCluster` plays the
API server (uids, resourceVersions, generations, field ownership, preconditions, what is immutable), and `tick` plays the
controllers and the kubelet as far as a member's life needs them.

Every pass is watched: no illegal status, no write to what is not ours, no write at all where none is allowed, no member
rolled to GC on before the gate was passed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pullthrough import planning
from pullthrough.models import conditions, constants
from pullthrough.models.plan import Action, Apply, Create, Delete, DryRun, Event, Plan
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import KeeperReport, Ref, Refusal, Snapshot
from tests import builders

Raw = dict[str, Any]

START = datetime(2026, 1, 1, tzinfo=UTC)
NODE = "node-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is true outside the API server."""

    bad_images: frozenset[str] = frozenset()
    """Images that no registry has."""
    crashes_with_gc: str = ""
    """Name of a container that exits with 1 whenever GC is on."""
    prepare_says: Mapping[str, Any] | None = None
    """If set: prepare fails with this termination message."""
    job: str = "succeeds"
    """succeeds, fails, or hangs."""
    job_seconds: int = 20
    """How long a Job that ends says that it took."""
    job_says: Mapping[str, Any] = field(
        default_factory=lambda: {
            "version": 1,
            "reason": "StorageFull",
            "message": "no space left: enlarge the volume",
        }
    )
    """Termination message of a Job that fails."""
    is_upstream_reachable: bool = True
    canary: str = "Passed"
    keeper_error: str = ""
    """If set: the keeper does not answer, with these words."""
    problem: str = ""
    """What the last start could not do."""
    uncovered: int = 0
    is_scheduler_able: bool = True
    intruder: Mapping[str, Any] | None = None
    """Somebody else's pod on the claim."""
    loses_state: bool = False
    """The keeper finds the TTL state lost, until prepare runs again; `loses_state_again`: after that too."""
    loses_state_again: bool = False
    prepare_hangs: bool = False
    """prepare never ends while GC is on."""
    quota: str = ""
    """If set: pods of Jobs are refused with these words."""
    no_growth: str = ""
    """If set: a claim that would grow is refused with these words."""
    keeps_terminating: bool = False
    """Pods that are deleted stay, terminating."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The whole world at one moment."""

    cache: Mapping[str, Any] | None = field(default_factory=builders.cache_raw)
    objects: Mapping[Ref, Raw] = field(default_factory=dict)
    applied: Mapping[Ref, Raw] = field(default_factory=dict)
    """What was last applied of each object: the API server's record of field ownership."""
    foreign: frozenset[Ref] = frozenset()
    """Refs found by a 409 to be somebody else's: no watch shows them."""
    world: World = field(default_factory=World)
    settings: Settings = builders.SETTINGS
    now: datetime = START
    counter: int = 100
    """For uids and resourceVersions."""
    events: tuple[Event, ...] = ()
    writes: int = 0
    namespace_terminating: bool = False

    # -- questions ---------------------------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Raw | None:
        return self.objects.get(Ref(kind, name))

    def of(self, kind: str) -> list[Raw]:
        return [self.objects[ref] for ref in sorted(self.objects) if ref.kind == kind]

    @property
    def status(self) -> Mapping[str, Any]:
        assert self.cache is not None
        status: Mapping[str, Any] = self.cache.get("status", {})
        return status

    def condition(self, kind: str) -> Mapping[str, Any]:
        found: dict[str, Raw] = {c["type"]: c for c in self.status.get("conditions", [])}
        return found.get(kind, {"status": "", "reason": "", "message": ""})

    def says(self, kind: str) -> str:
        """`True Succeeded`, or "" where the condition is absent."""
        one = self.condition(kind)
        return f"{one['status']} {one['reason']}".strip()

    @property
    def stateful_set(self) -> Raw:
        found = self.get("StatefulSet", f"{builders.NAME}-0")
        assert found is not None
        return found

    @property
    def mode(self) -> str:
        """The mode in the member's pod template."""
        return str(self.template_annotations[constants.ANNOTATION_GC_MODE])

    @property
    def template_annotations(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.stateful_set["spec"]["template"]["metadata"]["annotations"]
        return found

    @property
    def pod(self) -> Raw | None:
        return self.get("Pod", f"{builders.NAME}-0-0")

    # -- changes from outside ------------------------------------------------------------------------------------------

    def edited(self, **spec: Any) -> State:
        """The user patches the spec; a generation more if that changes anything."""
        assert self.cache is not None
        cache = copied(dict(self.cache))
        after = builders.merged(cache["spec"], spec)
        if after != cache["spec"]:
            cache["spec"] = after
            cache["metadata"]["generation"] += 1
        return dataclasses.replace(self, cache=cache)

    def with_world(self, **changes: Any) -> State:
        return dataclasses.replace(self, world=dataclasses.replace(self.world, **changes))

    def with_object(self, obj: Raw) -> State:
        ref = Ref(obj["kind"], obj["metadata"]["name"])
        return dataclasses.replace(self, objects={**self.objects, ref: obj})

    def without(self, kind: str, name: str) -> State:
        """Somebody deletes an object by hand."""
        cluster = MemoryCluster(self)
        cluster.remove(Ref(kind, name))
        return cluster.state()

    def after(self, **passed: float) -> State:
        return dataclasses.replace(self, now=self.now + timedelta(**passed))


def copied(obj: Any) -> Any:
    """A deep copy of JSON; several times as fast as copy.deepcopy."""
    if isinstance(obj, Mapping):
        return {key: copied(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [copied(value) for value in obj]
    return obj


class Overtaken(Exception):
    """A precondition did not hold, or the object was there already: the pass ends here."""


class Refused(Exception):
    """A quota or a policy refuses."""


class MemoryCluster:
    """Plays the API server over one state."""

    def __init__(self, state: State) -> None:
        self.base = state
        self.objects: dict[Ref, Raw] = {ref: copied(obj) for ref, obj in state.objects.items()}
        self.applied: dict[Ref, Raw] = {ref: copied(obj) for ref, obj in state.applied.items()}
        self.foreign = set(state.foreign)
        self.counter = state.counter
        self.writes = state.writes

    def state(self) -> State:
        return dataclasses.replace(
            self.base,
            objects=self.objects,
            applied=self.applied,
            foreign=frozenset(self.foreign),
            counter=self.counter,
            writes=self.writes,
        )

    def number(self) -> int:
        self.counter += 1
        return self.counter

    def perform(self, action: Action) -> None:
        self.writes += 1
        match action:
            case Create():
                self.create(copied(dict(action.desired)))
            case DryRun():
                assert action.desired["kind"] == "Pod"
                if self.base.world.quota:
                    raise Refused(self.base.world.quota)
            case Apply():
                self.apply(action)
            case Delete():
                self.delete(action)

    def create(self, desired: Raw) -> None:
        ref = Ref(desired["kind"], desired["metadata"]["name"])
        if ref in self.objects:
            self.foreign.add(ref)
            raise Overtaken(f"{ref} is there already")
        live = with_defaults(copied(desired))
        live["metadata"] |= {
            "uid": f"uid-{self.number()}",
            "resourceVersion": str(self.number()),
            "generation": 1,
            "creationTimestamp": conditions.format_time(self.base.now),
        }
        self.objects[ref] = live
        self.applied[ref] = desired

    def apply(self, action: Apply) -> None:
        desired = copied(dict(action.desired))
        ref = Ref(desired["kind"], desired["metadata"]["name"])
        live = self._checked(ref, action.uid, action.resource_version)
        assert is_ours(live, self.base), f"applied to somebody else's {ref}"
        after = with_defaults(apply_fields(live, self.applied.get(ref, {}), desired))
        refuse_immutable(live, after)
        if ref.kind == "PersistentVolumeClaim" and self.base.world.no_growth:
            path = ("spec", "resources", "requests", "storage")
            if _at(live, path) != _at(after, path):
                raise Refused(self.base.world.no_growth)
        self.applied[ref] = desired
        if after == live:
            return
        after["metadata"]["resourceVersion"] = str(self.number())
        if after.get("spec") != live.get("spec"):
            after["metadata"]["generation"] += 1
        self.objects[ref] = after

    def delete(self, action: Delete) -> None:
        live = self._checked(action.ref, action.uid, action.resource_version)
        assert is_ours(live, self.base), f"deleted somebody else's {action.ref}"
        self.remove(action.ref)

    def remove(self, ref: Ref) -> None:
        """A DELETE by anybody."""
        live = self.objects[ref]
        has_grace = ref.kind == "Pod" or (
            ref.kind == "PersistentVolumeClaim" and self._is_mounted(ref.name)
        )
        if has_grace:
            live["metadata"].setdefault("deletionTimestamp", conditions.format_time(self.base.now))
            live["metadata"]["resourceVersion"] = str(self.number())
        else:
            self.forget(ref)

    def forget(self, ref: Ref) -> None:
        del self.objects[ref]
        self.applied.pop(ref, None)
        self.foreign.discard(ref)

    @property
    def cache_uid(self) -> str:
        assert self.base.cache is not None
        return str(self.base.cache["metadata"]["uid"])

    def _checked(self, ref: Ref, uid: str, resource_version: str) -> Raw:
        live = self.objects.get(ref)
        if live is None or live["metadata"]["uid"] != uid:
            raise Overtaken(f"{ref} is another one")
        if resource_version and live["metadata"]["resourceVersion"] != resource_version:
            raise Overtaken(f"{ref} has changed")
        return live

    def _is_mounted(self, claim: str) -> bool:
        return any(
            volume.get("persistentVolumeClaim", {}).get("claimName") == claim
            for ref, pod in self.objects.items()
            if ref.kind == "Pod"
            for volume in pod["spec"].get("volumes", [])
        )


# -- a pass --------------------------------------------------------------------------------------------------------------


def snapshot_of(
    state: State,
    confirmed: frozenset[Ref],
    asked: frozenset[str],
    looked: frozenset[str],
    refusal: Refusal | None = None,
) -> Snapshot:
    """What a pass sees: what carries our labels, what was found to be foreign, what was read live."""
    seen = {
        ref: obj
        for ref, obj in state.objects.items()
        if is_labelled(obj) or ref in state.foreign or ref in confirmed
    }
    return Snapshot(
        now=state.now,
        objects=seen,
        confirmed_absent=frozenset(ref for ref in confirmed if ref not in state.objects),
        reports={member: report_of(state, member) for member in asked},
        users={claim: users_of(state, claim) for claim in looked},
        refusal=refusal,
        namespace_terminating=state.namespace_terminating,
    )


def users_of(state: State, claim: str) -> tuple[Raw, ...]:
    """Every pod that names the claim."""
    pods = [obj for ref, obj in sorted(state.objects.items()) if ref.kind == "Pod"]
    if state.world.intruder is not None:
        pods.append(dict(state.world.intruder))
    return tuple(
        pod
        for pod in pods
        for volume in pod["spec"].get("volumes", [])
        if volume.get("persistentVolumeClaim", {}).get("claimName") == claim
    )


def report_of(state: State, member: str) -> KeeperReport:
    pod = state.get("Pod", f"{member}-0")
    if pod is None or not is_ready(pod):
        return KeeperReport(pod_uid="", error="the member has no pod")
    if state.world.keeper_error:
        return KeeperReport(pod_uid=pod["metadata"]["uid"], error=state.world.keeper_error)
    return KeeperReport(
        pod_uid=pod["metadata"]["uid"],
        problem=state.world.problem,
        upstream_reachable=state.world.is_upstream_reachable,
        upstream_age=timedelta(seconds=5),
        upstream_message="" if state.world.is_upstream_reachable else "connection refused",
        canary=state.world.canary,
        uncovered=state.world.uncovered,
        needs_prepare=needs_prepare(state, pod),
    )


def needs_prepare(state: State, pod: Mapping[str, Any]) -> bool:
    was_again = constants.ANNOTATION_PREPARED_AGAIN in pod["metadata"]["annotations"]
    return state.world.loses_state_again if was_again else state.world.loses_state


def decide(state: State, refusal: Refusal | None = None) -> Plan:
    """As `reconcile` does: what the plan wants to know is looked up, and it is asked again."""
    assert state.cache is not None
    confirmed: frozenset[Ref] = frozenset()
    asked: frozenset[str] = frozenset()
    looked: frozenset[str] = frozenset()
    plan = Plan()
    for _ in range(3):
        snapshot = snapshot_of(state, confirmed, asked, looked, refusal)
        plan = planning.plan(state.cache, snapshot, state.settings)
        if (
            confirmed.issuperset(plan.confirm)
            and asked.issuperset(plan.wants_report)
            and looked.issuperset(plan.wants_users)
        ):
            return plan
        confirmed |= frozenset(plan.confirm)
        asked |= frozenset(plan.wants_report)
        looked |= frozenset(plan.wants_users)
    raise AssertionError(f"still wants to know after three rounds: {plan}")


def run(state: State, *, only: int | None = None) -> State:
    """One pass. With `only`, the operator dies after that many actions."""
    return passed(state, only=only)[0]


def passed(state: State, *, only: int | None = None) -> tuple[State, Plan]:
    """One pass, with the plan that it followed."""
    plan = decide(state)
    watch(state, plan)
    cluster = MemoryCluster(state)
    for action in plan.actions[:only]:
        try:
            cluster.perform(action)
        except Overtaken:
            return cluster.state(), plan
        except Refused as refused:
            refusal = refusal_of(action, str(refused))
            plan = dataclasses.replace(decide(state, refusal), actions=(), requeue_after=5.0)
            watch(state, plan)
            break
    after = cluster.state()
    if (only is not None and only < len(plan.actions)) or plan.status is None:
        return after, plan
    cache = copied(dict(state.cache or {}))
    if cache.get("status") != plan.status:
        cache["status"] = copied(dict(plan.status))
        after = dataclasses.replace(after, writes=after.writes + 1)
    return dataclasses.replace(after, cache=cache, events=state.events + plan.events), plan


def refusal_of(action: Action, message: str) -> Refusal:
    assert not isinstance(action, Delete)
    metadata = action.desired["metadata"]
    ref = Ref(action.desired["kind"], metadata.get("name") or metadata["generateName"])
    return Refusal(ref=ref, message=message, is_dry_run=isinstance(action, DryRun))


def watch(state: State, plan: Plan) -> None:
    """What must hold of every pass, whatever a test is about."""
    assert state.cache is not None
    metadata = state.cache["metadata"]
    if metadata.get("deletionTimestamp") or state.namespace_terminating:
        assert plan.actions == () and plan.status is None, "wrote although it is being deleted"
        return
    if state.cache["spec"].get("suspend"):
        assert plan.actions == (), f"touched something although suspended: {plan.actions}"
    assert plan.status is not None
    assert conditions.check_legal(plan.status, metadata["generation"]) == []
    before = {c["type"]: c for c in state.status.get("conditions", [])}
    for condition in plan.status["conditions"]:
        old = before.get(condition["type"])
        if old is not None and old["status"] == condition["status"]:
            assert condition["lastTransitionTime"] == old["lastTransitionTime"], condition
    if plan.status["conditions"] == state.status.get("conditions"):
        assert plan.events == (), "an event without a transition"
    json.dumps(plan.status)
    for action in plan.actions:
        if not isinstance(action, Delete):
            watch_desired(state, action)


def watch_desired(state: State, action: Create | Apply | DryRun) -> None:
    desired = action.desired
    text = json.dumps(desired)
    assert "somebody's-gitops" not in text and "tracking-id" not in text, (
        "copied the cache's own labels"
    )
    if desired["kind"] != "StatefulSet" or not isinstance(action, Apply):
        return
    now_on = desired["spec"]["template"]["metadata"]["annotations"][constants.ANNOTATION_GC_MODE]
    if state.mode == "Disabled" and now_on == "Enabled":
        watch_gate(state, desired, action)


def watch_gate(state: State, desired: Mapping[str, Any], action: Apply) -> None:
    """M1 and M3 at the moment of the roll."""
    assert action.resource_version, (
        "rolled to GC on without the precondition that the observation still holds"
    )
    assert state.world.is_upstream_reachable
    assert is_ready(state.pod)
    migration = desired["spec"]["template"]["metadata"]["annotations"].get(
        constants.ANNOTATION_MIGRATION
    )
    claim = state.get("PersistentVolumeClaim", f"{builders.NAME}-0")
    if claim is not None and claim["spec"]["accessModes"] == ["ReadWriteOncePod"]:
        assert migration is None
        return
    done = [
        job["metadata"]["uid"]
        for job in state.of("Job")
        if any(c["type"] == "Complete" for c in job.get("status", {}).get("conditions", []))
    ]
    assert migration in done, "rolled to GC on without a Job that succeeded"


def settle(state: State, *, passes: int = 400) -> State:
    """Passes and controllers in turns, until neither changes anything any more however long one waits."""
    quiet, plan = 0, Plan()
    for _ in range(passes):
        after, plan = passed(state)
        after = tick(after)
        quiet = quiet + 1 if is_same(after, state) else 0
        if quiet and plan.requeue_after is None:
            return after
        if quiet >= 10:  # longer than any back-off
            return after
        wait = min(plan.requeue_after or 1.0, 1.0 if not quiet else 60.0)
        state = dataclasses.replace(after, now=after.now + timedelta(seconds=wait))
    raise AssertionError(f"never comes to rest: {plan.summary}, {plan.actions}")


def is_same(one: State, other: State) -> bool:
    """The same but for the clock and counters."""
    return one.objects == other.objects and one.cache == other.cache


def story(state: State, until: Any, *, passes: int = 200) -> State:
    """Passes and controllers in turns until `until(state)` holds."""
    for _ in range(passes):
        if until(state):
            return state
        state = tick(run(state)).after(seconds=1)
    raise AssertionError(f"never happened; conditions: {state.status.get('conditions')}")


# -- the controllers and the kubelet -------------------------------------------------------------------------------------


def tick(state: State) -> State:
    """Each controller takes one step."""
    cluster = MemoryCluster(state)
    before = copied(cluster.objects)
    _collect_garbage(cluster)
    _run_pods(cluster)
    _bind_claims(cluster)
    _run_stateful_sets(cluster)
    _run_jobs(cluster)
    for ref, obj in cluster.objects.items():
        if ref in before and obj != before[ref]:
            obj["metadata"]["resourceVersion"] = str(cluster.number())
    return cluster.state()


def _collect_garbage(cluster: MemoryCluster) -> None:
    uids = {obj["metadata"]["uid"] for obj in cluster.objects.values()}
    cache = cluster.base.cache
    if cache is not None:
        uids.add(cache["metadata"]["uid"])
    for ref, obj in sorted(cluster.objects.items()):
        owners = obj["metadata"].get("ownerReferences") or []
        if owners and not any(owner["uid"] in uids for owner in owners) and ref in cluster.objects:
            cluster.remove(ref)


def _bind_claims(cluster: MemoryCluster) -> None:
    for ref, claim in list(cluster.objects.items()):
        if ref.kind != "PersistentVolumeClaim" or not is_labelled(claim):
            continue
        claim["spec"].setdefault("volumeName", f"pv-{claim['metadata']['uid']}")
        asked = claim["spec"]["resources"]["requests"]["storage"]
        claim["status"] = {"phase": "Bound", "capacity": {"storage": asked}}
        if claim["metadata"].get("deletionTimestamp") and not cluster._is_mounted(ref.name):
            cluster.forget(ref)


def _run_stateful_sets(cluster: MemoryCluster) -> None:
    for ref, owner in list(cluster.objects.items()):
        if ref.kind != "StatefulSet" or not is_labelled(owner):
            continue
        template = owner["spec"]["template"]
        pod_ref = Ref("Pod", f"{ref.name}-0")
        pod = cluster.objects.get(pod_ref)
        if pod is None:
            cluster.objects[pod_ref] = _new_pod(cluster, pod_ref.name, template, owner)
        elif controller_of(pod) == owner["metadata"]["uid"] and pod["template"] != template:
            cluster.remove(pod_ref)


def _run_jobs(cluster: MemoryCluster) -> None:
    world, now = cluster.base.world, cluster.base.now
    for ref, job in list(cluster.objects.items()):
        if ref.kind != "Job" or job.get("status", {}).get("conditions"):
            continue
        pod_ref = Ref("Pod", f"{ref.name}-x")
        pod = cluster.objects.get(pod_ref)
        if pod is None:
            cluster.objects[pod_ref] = _new_pod(cluster, pod_ref.name, job["spec"]["template"], job)
            job["status"] = {"active": 1}
        elif world.job != "hangs":
            failed = world.job == "fails"
            collected = {
                "version": 1,
                "collectedBy": conditions.format_time(now + timedelta(hours=1)),
            }
            said = world.job_says if failed else collected
            ended = {"exitCode": int(failed), "message": json.dumps(said)}
            pod["status"] = {
                "phase": "Failed" if failed else "Succeeded",
                "containerStatuses": [{"name": "migrate", "state": {"terminated": ended}}],
            }
            job["status"] = {
                "startTime": conditions.format_time(now - timedelta(seconds=world.job_seconds)),
                "completionTime": conditions.format_time(now),
                "conditions": [
                    {
                        "type": "Failed" if failed else "Complete",
                        "status": "True",
                        "lastTransitionTime": conditions.format_time(now),
                    }
                ],
            }


def _new_pod(cluster: MemoryCluster, name: str, template: Raw, owner: Raw) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **copied(template["metadata"]),
            "name": name,
            "namespace": builders.NAMESPACE,
            "uid": f"uid-{cluster.number()}",
            "resourceVersion": str(cluster.number()),
            "creationTimestamp": conditions.format_time(cluster.base.now),
            "ownerReferences": [
                {"kind": owner["kind"], "uid": owner["metadata"]["uid"], "controller": True}
            ],
        },
        "template": copied(template),
        "spec": copied(template["spec"]),
        "status": {"phase": "Pending"},
    }


def _run_pods(cluster: MemoryCluster) -> None:
    for ref, pod in list(cluster.objects.items()):
        if ref.kind != "Pod":
            continue
        if pod["metadata"].get("deletionTimestamp"):
            if not cluster.base.world.keeps_terminating:
                cluster.forget(ref)
        elif constants.ANNOTATION_TEMPLATE in pod["metadata"]["annotations"]:
            pod["status"] = _status_of(cluster, pod)


def _status_of(cluster: MemoryCluster, pod: Raw) -> Raw:
    """The kubelet's next word about a member's pod."""
    world = cluster.base.world
    if not world.is_scheduler_able:
        return {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/1 nodes are available",
                }
            ],
        }
    spec = pod["spec"]
    spec["nodeName"] = NODE
    config = next(v["configMap"]["name"] for v in spec["volumes"] if v.get("configMap"))
    if Ref("ConfigMap", config) not in cluster.objects and not is_ready(pod):
        return {"phase": "Pending"}
    on = pod["metadata"]["annotations"][constants.ANNOTATION_GC_MODE] == "Enabled"
    names = ["prepare", "keeper", "registry"]
    images = {c["name"]: c["image"] for c in [*spec["initContainers"], *spec["containers"]]}
    statuses: dict[str, Raw] = {
        name: {"name": name, "image": images[name], "restartCount": 0} for name in names
    }
    is_up = True
    for name in names:
        crashed = _crash(world, name, on)
        if name == "prepare" and on and world.prepare_hangs:
            since = pod["status"].get("startedAt") or conditions.format_time(cluster.base.now)
            statuses[name]["state"] = {"running": {"startedAt": since}}
            return {
                "phase": "Pending",
                "startedAt": since,
                "initContainerStatuses": [statuses["prepare"]],
            }
        if images[name] in world.bad_images:
            statuses[name]["state"] = {
                "waiting": {"reason": "ImagePullBackOff", "message": "not found"}
            }
            is_up = False
        elif crashed is not None:
            statuses[name] |= {
                "restartCount": min(_restarts(pod, name) + 1, 9),
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": crashed},
            }
            is_up = False
        if not is_up:
            break
    ready = is_up and pod["status"].get("phase") == "Running"
    return {
        "phase": "Running" if is_up else "Pending",
        "podIP": "10.0.0.1",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if ready else "False"},
        ],
        "initContainerStatuses": [statuses["prepare"], statuses["keeper"]],
        "containerStatuses": [{**statuses["registry"], "ready": ready}],
    }


def _crash(world: World, name: str, on: bool) -> Raw | None:
    if name == "prepare" and world.prepare_says is not None:
        return {"exitCode": 3, "message": json.dumps(world.prepare_says)}
    if world.crashes_with_gc == name and on:
        return {"exitCode": 1, "message": ""}
    return None


def _restarts(pod: Raw, name: str) -> int:
    both = [
        *pod["status"].get("initContainerStatuses", []),
        *pod["status"].get("containerStatuses", []),
    ]
    return next((int(s.get("restartCount", 0)) for s in both if s["name"] == name), 0)


# -- what the API server knows -------------------------------------------------------------------------------------------


def is_labelled(obj: Mapping[str, Any]) -> bool:
    labels = obj["metadata"].get("labels") or {}
    return (
        labels.get(constants.LABEL_MANAGED_BY) == constants.FIELD_MANAGER
        and labels.get(constants.LABEL_CACHE) == builders.NAME
    )


def is_ready(pod: Mapping[str, Any] | None) -> bool:
    if pod is None or pod["metadata"].get("deletionTimestamp"):
        return False
    return any(
        c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
    )


def controller_of(obj: Mapping[str, Any]) -> str:
    owners = obj["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def is_ours(obj: Mapping[str, Any], state: State) -> bool:
    if obj["kind"] == "PersistentVolumeClaim":
        return is_labelled(obj)
    assert state.cache is not None
    return controller_of(obj) == str(state.cache["metadata"]["uid"])


def apply_fields(live: Any, before: Any, desired: Any) -> Any:
    """Server-side apply by one manager: what it applied before and leaves out now goes; everything else stays."""
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        before = before if isinstance(before, Mapping) else {}
        kept = {k: v for k, v in live.items() if k in desired or k not in before}
        changed = {k: apply_fields(live.get(k), before.get(k), v) for k, v in desired.items()}
        return {**kept, **changed}
    if _is_keyed(desired) and _is_keyed(live):
        was = {item["name"]: item for item in before} if _is_keyed(before) else {}
        there = {item["name"]: item for item in live}
        wanted = {item["name"] for item in desired}
        others = [item for item in live if item["name"] not in wanted and item["name"] not in was]
        return [apply_fields(there.get(i["name"]), was.get(i["name"]), i) for i in desired] + others
    return copied(desired)


def _is_keyed(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(i, Mapping) and "name" in i for i in value)
    )


def with_defaults(obj: Raw) -> Raw:
    """A few of the defaults and rewritings that make a live object differ from what was sent."""
    obj = copied(obj)
    match obj["kind"]:
        case "Service":
            obj["spec"].setdefault("clusterIP", "10.1.2.3")
            obj["spec"].setdefault("sessionAffinity", "None")
        case "PersistentVolumeClaim":
            obj["spec"].setdefault("volumeMode", "Filesystem")
            obj["spec"].setdefault("storageClassName", "standard")
        case "StatefulSet" | "Job":
            template = obj["spec"]["template"]
            template["spec"].setdefault("dnsPolicy", "ClusterFirst")
            for container in template["spec"]["containers"]:
                container.setdefault("terminationMessagePolicy", "File")
                for amounts in container.get("resources", {}).values():
                    for name, amount in amounts.items():
                        amounts[name] = {"1024Mi": "1Gi", "1000m": "1", "0.5": "500m"}.get(
                            amount, amount
                        )
        case _:
            pass
    return obj


IMMUTABLE = {
    "ConfigMap": (("data",), ("immutable",)),
    "StatefulSet": (
        ("spec", "selector"),
        ("spec", "serviceName"),
        ("spec", "podManagementPolicy"),
    ),
    "Job": (("spec",),),
    "PersistentVolumeClaim": (
        ("spec", "accessModes"),
        ("spec", "storageClassName"),
        ("spec", "volumeName"),
    ),
}


def refuse_immutable(live: Raw, after: Raw) -> None:
    for path in IMMUTABLE.get(live["kind"], ()):
        assert _at(live, path) == _at(after, path), f"{live['kind']}: {path} is immutable"
    if live["kind"] == "PersistentVolumeClaim":
        sizes = [
            int(re.sub(r"\D", "", _at(o, ("spec", "resources", "requests", "storage"))))
            for o in (live, after)
        ]
        assert sizes[0] <= sizes[1], "a claim cannot shrink"


def _at(obj: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        obj = (obj or {}).get(part)
    return obj


# -- comparing ends --------------------------------------------------------------------------------------------------------

_VOLATILE = {
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "lastTransitionTime",
    "collectedBy",
    constants.ANNOTATION_APPLIED,
    constants.ANNOTATION_TEMPLATE,
    constants.ANNOTATION_ASKED,
    constants.ANNOTATION_PROVEN,
    constants.ANNOTATION_MIGRATION_SECONDS,
    constants.ANNOTATION_COLLECTED_BY,
}


def essence(state: State) -> Any:
    """The state without what depends on when and how often things were made."""
    objects = {
        f"{ref.kind}/{ref.name}": _essence(obj) for ref, obj in sorted(state.objects.items())
    }
    return {
        "objects": objects,
        "status": _essence(state.status),
        "spec": (state.cache or {}).get("spec"),
    }


def _essence(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _essence(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_essence(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(uid-\d+|--template=\w+)", "…", value)
    return value
