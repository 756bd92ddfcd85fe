"""A cache's life, pass by pass: `State -> run -> State`.

What contributes: the spec and what is edited in it · which children are there and whose · the claim and who used it ·
the member's pod · what goes wrong outside. Each pass is also watched by `scenario.watch`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pullthrough.models import constants
from pullthrough.models.settings import KeeperSettings
from pullthrough.models.snapshot import Ref
from tests import builders, scenario
from tests.scenario import State


@pytest.fixture(scope="module")
def serving() -> State:
    """Made with garbage collection off, and at rest."""
    return scenario.settle(State())


@pytest.fixture(scope="module")
def collecting() -> State:
    """Made with garbage collection on, and at rest."""
    return scenario.settle(State(cache=builders.cache_raw(gc={"mode": "Enabled"})))


def kinds(state: State) -> list[str]:
    return sorted(f"{ref.kind}/{ref.name}" for ref in state.objects if ref.kind != "ConfigMap")


def test_a_new_cache_gets_its_objects_and_is_ready(serving: State) -> None:
    assert kinds(serving) == [
        "PersistentVolumeClaim/c-0",
        "Pod/c-0-0",
        "Service/c",
        "Service/c-0",
        "StatefulSet/c-0",
    ]
    assert len(serving.of("ConfigMap")) == 1
    assert serving.says("Ready") == "True Succeeded"
    assert serving.says("Available") == "True MembersReady"
    assert serving.says("Migrating") == "False GarbageCollectionDisabled"
    assert serving.says("Reconciling") == serving.says("Stalled") == ""
    assert serving.status["endpoint"] == "c.n.svc:5000"
    assert [member["name"] for member in serving.status["members"]] == ["c-0"]


def test_a_new_cache_with_gc_on_is_made_so_without_a_job(collecting: State) -> None:
    assert collecting.mode == "Enabled"
    assert collecting.of("Job") == []
    assert constants.ANNOTATION_MIGRATION not in collecting.template_annotations
    assert collecting.says("Migrating") == "False MigrationCompleted"


def test_before_anything_is_made_it_is_said_that_it_will_be() -> None:
    first = scenario.run(State())
    assert first.says("Ready").startswith("False")
    assert first.says("Reconciling").startswith("True")
    assert first.says("Available").startswith("False")


@pytest.mark.parametrize("which", ["serving", "collecting"])
def test_a_pass_over_what_is_settled_writes_nothing(
    which: str, request: pytest.FixtureRequest
) -> None:
    settled: State = request.getfixturevalue(which)
    after = scenario.run(settled.after(hours=5))
    assert after.writes == settled.writes
    assert after.events == settled.events


@pytest.mark.parametrize("which", ["serving", "collecting"])
def test_settling_what_is_settled_changes_nothing(
    which: str, request: pytest.FixtureRequest
) -> None:
    settled: State = request.getfixturevalue(which)
    assert scenario.is_same(scenario.settle(settled), settled)


EDITS: dict[str, dict[str, Any]] = {
    "another url": {"upstream": {"url": "https://mirror.example.org"}},
    "another image": {"registry": {"image": "example.org/registry:3.1.1"}},
    "another series": {"registry": {"series": "v2"}},
    "a larger claim": {"storage": {"volume": {"size": "20Gi"}}},
    "claims that go with the cache": {"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}},
    "labels": {"podTemplate": {"labels": {"team": "a"}, "annotations": {"note": "b"}}},
    "resources": {"podTemplate": {"resources": {"limits": {"memory": "1024Mi", "cpu": "0.5"}}}},
    "placement": {
        "podTemplate": {
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 0}],
            "affinity": {"podAntiAffinity": {}},
        }
    },
    "identity": {
        "podTemplate": {
            "imagePullSecrets": [{"name": "pull"}],
            "serviceAccountName": "sa",
            "priorityClassName": "high",
        }
    },
    "gc on": {"gc": {"mode": "Enabled"}},
    "gc on with another ttl": {"gc": {"mode": "Enabled", "ttl": "1m"}},
    "gc on with another image": {
        "gc": {"mode": "Enabled"},
        "registry": {"image": "example.org/registry:3.1.1"},
    },
    "a spread": {"gc": {"spread": "1h"}},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("which", ["serving", "collecting"])
def test_an_edit_ends_as_if_the_cache_had_been_made_so(
    which: str, edit: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    settled: State = request.getfixturevalue(which)
    edited = scenario.settle(settled.edited(**edit))
    assert edited.cache is not None
    assert edited.says("Ready") == "True Succeeded"
    assert edited.status["observedGeneration"] == edited.cache["metadata"]["generation"]
    made_so = scenario.settle(State(cache={**edited.cache, "status": {}}))
    for one in ("Service/c", "Service/c-0", "PersistentVolumeClaim/c-0"):
        ref = Ref(*one.split("/"))
        assert spec_of(edited, ref) == spec_of(made_so, ref)
    assert containers(edited) == containers(made_so)
    assert edited.mode == made_so.mode
    assert edited.of("Job") == []
    assert len(edited.of("ConfigMap")) == 1


def spec_of(state: State, ref: Ref) -> Any:
    return {k: v for k, v in state.objects[ref]["spec"].items() if k != "volumeName"}


def containers(state: State) -> Any:
    """The registry, and its pod's spec, but for what only a history has: the Job's uid, hashes, an unused ttl."""
    assert state.pod is not None
    spec = state.pod["spec"]
    rest = {k: v for k, v in spec.items() if k not in ("initContainers", "nodeName")}
    return spec["containers"], rest


@pytest.mark.parametrize("undo", ["labels", "resources", "placement", "identity"])
def test_an_edit_taken_back_leaves_no_trace(serving: State, undo: str) -> None:
    edited = scenario.settle(serving.edited(**EDITS[undo]))
    back = scenario.settle(edited.edited(podTemplate=None))
    assert back.stateful_set["spec"] == serving.stateful_set["spec"]


def test_claims_that_no_longer_go_with_the_cache_lose_their_owner(serving: State) -> None:
    retention = EDITS["claims that go with the cache"]
    owned = scenario.settle(serving.edited(**retention))
    claim = owned.get("PersistentVolumeClaim", "c-0")
    assert claim is not None and scenario.controller_of(claim) == "uid-cache"
    freed = scenario.settle(owned.edited(storage={"retentionPolicy": None}))
    claim = freed.get("PersistentVolumeClaim", "c-0")
    assert claim is not None and not claim["metadata"].get("ownerReferences")


@pytest.mark.parametrize(
    "change",
    [
        {
            "spec": {
                "ports": [
                    {"name": "registry", "port": 80, "protocol": "TCP", "targetPort": "registry"}
                ]
            }
        },
        {"metadata": {"labels": {constants.LABEL_INSTANCE: None}}},
        {"spec": {"selector": {constants.LABEL_MEMBER: None}}},
    ],
    ids=["port", "label", "selector"],
)
def test_drift_of_a_service_is_mended(serving: State, change: dict[str, Any]) -> None:
    service = serving.get("Service", "c-0")
    drifted = serving.with_object(builders.merged(service, change))
    mended = scenario.settle(drifted)
    assert scenario.essence(mended) == scenario.essence(serving)


def test_a_template_changed_by_hand_is_put_back(serving: State) -> None:
    changed = builders.merged(serving.stateful_set, {})
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "example.org/other:1"
    mended = scenario.settle(serving.with_object(changed))
    assert containers(mended) == containers(serving)


def test_what_others_add_stays(serving: State) -> None:
    note = {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied": "x"}}}
    noted = serving.with_object(builders.merged(serving.get("Service", "c"), note))
    after = scenario.run(noted)
    assert after.writes == noted.writes


@pytest.mark.parametrize("which", ["serving", "collecting"])
@pytest.mark.parametrize(
    "child", ["Service/c", "Service/c-0", "StatefulSet/c-0", "ConfigMap", "Pod/c-0-0"]
)
def test_a_child_deleted_by_hand_comes_back(
    which: str, child: str, request: pytest.FixtureRequest
) -> None:
    settled: State = request.getfixturevalue(which)
    if child == "ConfigMap":
        child = f"ConfigMap/{settled.of('ConfigMap')[0]['metadata']['name']}"
    after = scenario.settle(settled.without(*child.split("/")))
    assert scenario.essence(after) == scenario.essence(settled)
    assert after.says("Ready") == "True Succeeded"


def test_a_pod_left_by_an_orphaning_deletion_is_adopted(serving: State) -> None:
    left = serving.without("StatefulSet", "c-0")
    pod = builders.merged(left.pod, {"metadata": {"ownerReferences": None}})
    after = scenario.run(left.with_object(pod))
    assert after.get("StatefulSet", "c-0") is not None


UPGRADES: dict[str, dict[str, Any]] = {
    "the image": {"image": "x:2"},
    "the keeper's settings": {"keeper": KeeperSettings(sweep_interval="1m", rate=7)},
    "the default registry image": {
        "registry_images": {"v3": "example.org/registry:3.2.0", "v2": "example.org/registry:2.8.3"}
    },
    "how images are pulled": {"image_pull_policy": "Always"},
}


@pytest.mark.parametrize("name", UPGRADES)
def test_what_the_operator_brings_restarts_no_registry(collecting: State, name: str) -> None:
    settings = dataclasses.replace(collecting.settings, **UPGRADES[name])
    after = scenario.settle(dataclasses.replace(collecting, settings=settings))
    assert after.pod == collecting.pod
    assert after.says("Ready") == "True Succeeded"
    again = scenario.settle(after)
    assert again.writes == after.writes, "and then there is nothing more to write"


def test_what_the_operator_brings_moves_with_the_next_change(serving: State) -> None:
    settings = dataclasses.replace(serving.settings, image="x:2")
    upgraded = scenario.settle(dataclasses.replace(serving, settings=settings))
    edited = scenario.settle(upgraded.edited(**EDITS["labels"]))
    assert edited.pod is not None
    assert edited.pod["spec"]["initContainers"][1]["image"] == "x:2"


def test_after_an_upgrade_drift_is_still_mended(serving: State) -> None:
    settings = dataclasses.replace(serving.settings, keeper=KeeperSettings(rate=7))
    upgraded = scenario.settle(dataclasses.replace(serving, settings=settings))
    scaled = scenario.copied(upgraded.stateful_set)
    scaled["spec"]["replicas"] = 0
    after = scenario.settle(upgraded.with_object(scaled))
    assert after.stateful_set["spec"]["replicas"] == 1
    assert after.pod == serving.pod


def test_growth_that_is_refused_is_said_and_holds_nothing_else_up(serving: State) -> None:
    words = "only dynamically provisioned pvc can be resized"
    state = serving.with_world(no_growth=words).edited(storage={"volume": {"size": "20Gi"}})
    state = scenario.settle(state)
    assert state.says("Ready") == "False RequestRefused"
    assert words in state.condition("Ready")["message"]
    assert state.says("Available") == "True MembersReady"
    after = scenario.settle(state.edited(registry={"image": "example.org/registry:3.1.1"}))
    assert after.pod is not None
    assert after.pod["spec"]["containers"][0]["image"].endswith(":3.1.1")
    after = scenario.settle(after.edited(gc={"mode": "Enabled"}))
    assert after.mode == "Enabled"


def test_unmarked_content_is_taken_over_where_the_claim_says_so(serving: State) -> None:
    said = {"version": 1, "reason": "StorageUnmarked", "message": "content of unknown origin"}
    state = scenario.settle(State().with_world(prepare_says=said))
    assert state.says("Stalled") == "True StorageUnmarked"
    claim = scenario.copied(state.get("PersistentVolumeClaim", "c-0"))
    claim["metadata"]["annotations"][constants.ANNOTATION_ADOPT_UNMARKED] = "true"
    after = scenario.settle(state.with_world(prepare_says=None).with_object(claim))
    assert after.pod is not None
    assert "--adopt-unmarked" in after.pod["spec"]["initContainers"][0]["args"]
    assert after.says("Ready") == "True Succeeded"


def test_a_bad_image_is_said_and_its_correction_cures_it(serving: State) -> None:
    bad = "example.org/no-such:1"
    broken = scenario.settle(
        serving.with_world(bad_images=frozenset({bad})).edited(registry={"image": bad})
    )
    assert broken.says("Ready") == "False ImagePullFailed"
    assert bad in broken.condition("Ready")["message"]
    assert broken.says("Available").startswith("False")
    cured = scenario.settle(broken.edited(registry={"image": None}))
    assert containers(cured) == containers(serving)
    assert cured.says("Ready") == "True Succeeded"


def test_a_pod_that_no_node_takes_is_said() -> None:
    after = scenario.settle(State().with_world(is_scheduler_able=False))
    assert after.says("Ready") == "False MemberUnschedulable"
    assert "0/1 nodes" in after.condition("Ready")["message"]


def test_a_prepare_that_finds_another_upstreams_storage_stalls_the_cache() -> None:
    said = {"version": 1, "reason": "StorageBelongsToOtherUpstream", "message": "it holds quay.io"}
    after = scenario.settle(State().with_world(prepare_says=said))
    assert after.says("Stalled") == "True StorageBelongsToOtherUpstream"
    assert "quay.io" in after.condition("Ready")["message"]


def test_a_prepare_that_fails_is_said_with_its_own_words() -> None:
    said = {"version": 1, "reason": "StorageFull", "message": "no space: enlarge the volume"}
    after = scenario.settle(State().with_world(prepare_says=said))
    assert after.says("Ready").startswith("False")
    assert "enlarge" in after.condition("Ready")["message"]


def test_a_smaller_size_is_said_and_not_applied(serving: State) -> None:
    after = scenario.settle(serving.edited(storage={"volume": {"size": "5Gi"}}))
    claim = after.get("PersistentVolumeClaim", "c-0")
    assert claim is not None and claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert after.says("Ready") == "False StorageSizeReduced"


def test_a_spec_that_cannot_be_read_touches_nothing(serving: State) -> None:
    after = scenario.settle(serving.edited(gc={"ttl": "1d"}))
    assert after.objects == serving.objects
    assert after.says("Stalled") == "True InvalidSpec"
    assert "gc.ttl" in after.condition("Stalled")["message"]
    assert after.says("Available") == "True MembersReady", "it serves on"


def test_nothing_is_written_once_the_cache_is_being_deleted(serving: State) -> None:
    cache = builders.merged(
        serving.cache, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    )
    after = scenario.run(dataclasses.replace(serving, cache=cache).without("Service", "c"))
    assert after.get("Service", "c") is None
    assert after.writes == serving.writes


def test_nothing_is_written_into_a_namespace_that_is_being_deleted() -> None:
    after = scenario.run(State(namespace_terminating=True))
    assert after.objects == {} and after.writes == 0


# -- whose is it ---------------------------------------------------------------------------------------------------------


def theirs(kind: str, name: str) -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "n",
        "uid": "uid-theirs",
        "resourceVersion": "7",
        "generation": 1,
    }
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": meta,
        "spec": {"template": {"spec": {"containers": []}}},
    }


@pytest.mark.parametrize(
    "child", ["Service/c", "Service/c-0", "StatefulSet/c-0", "PersistentVolumeClaim/c-0"]
)
def test_somebody_elses_object_is_untouched_and_named_and_nothing_else_is_made(child: str) -> None:
    kind, name = child.split("/")
    stalled = scenario.settle(State().with_object(theirs(kind, name)))
    assert stalled.says("Stalled") == "True NameConflict"
    assert f"{kind} n/{name}" in stalled.condition("Stalled")["message"]
    assert stalled.get(kind, name) == theirs(kind, name)
    assert list(stalled.objects) == [Ref(kind, name)], "nothing half made beside it"
    resolved = scenario.settle(stalled.without(kind, name))
    assert resolved.says("Ready") == "True Succeeded"


def recreated(state: State, **spec: Any) -> State:
    """The cache was deleted, its children collected, and one of the same name is made."""
    old = dataclasses.replace(state, cache=builders.cache_raw(uid="uid-nobody"))
    for _ in range(4):
        old = scenario.tick(old)
    return dataclasses.replace(old, cache=builders.cache_raw(uid="uid-second", **spec), events=())


def test_a_cache_made_again_takes_its_retained_claim_over(serving: State) -> None:
    again = recreated(serving, gc={"mode": "Enabled"})
    assert kinds(again) == ["PersistentVolumeClaim/c-0"]
    after = scenario.settle(again)
    claim = after.get("PersistentVolumeClaim", "c-0")
    assert claim is not None
    assert claim["metadata"]["annotations"][constants.ANNOTATION_USED_BY] == "uid-second/0"
    assert claim["metadata"]["uid"] == again.of("PersistentVolumeClaim")[0]["metadata"]["uid"]
    assert after.mode == "Enabled"
    assert after.says("Ready") == "True Succeeded"


def test_a_retained_claim_is_taken_over_only_as_it_was_seen(serving: State) -> None:
    plan = scenario.decide(recreated(serving))
    takeovers = [a for a in plan.actions if a.__class__.__name__ == "Apply"]
    assert [a.resource_version != "" for a in takeovers] == [True]  # type: ignore[union-attr]


def test_a_retained_claim_of_another_class_and_size_is_taken_as_it_is(serving: State) -> None:
    again = recreated(serving, storage={"volume": {"size": "5Gi", "storageClassName": "fast"}})
    after = scenario.settle(again)
    claim = after.get("PersistentVolumeClaim", "c-0")
    assert claim is not None and claim["spec"]["storageClassName"] == "standard"
    assert after.says("Available") == "True MembersReady"


def test_a_claim_of_another_upstream_is_refused(serving: State) -> None:
    again = recreated(serving, upstream={"host": "quay.io"})
    after = scenario.settle(again)
    assert after.says("Stalled") == "True StorageBelongsToOtherUpstream"
    assert "docker.io" in after.condition("Stalled")["message"]
    assert after.objects == again.objects


def test_children_of_an_earlier_cache_are_waited_for(serving: State) -> None:
    second = dataclasses.replace(serving, cache=builders.cache_raw(uid="uid-second"))
    first_pass = scenario.run(second)
    assert first_pass.objects == serving.objects
    assert first_pass.says("Reconciling") == "True ChildTerminating"
    after = scenario.settle(second)
    assert after.says("Ready") == "True Succeeded"
    assert scenario.controller_of(after.stateful_set) == "uid-second"


def test_a_claim_that_goes_with_its_earlier_cache_is_waited_for() -> None:
    gone_with = {"retentionPolicy": {"whenDeleted": "Delete"}}
    first = scenario.settle(State(cache=builders.cache_raw(storage=gone_with)))
    second = dataclasses.replace(
        first, cache=builders.cache_raw(uid="uid-second", storage=gone_with)
    )
    after = scenario.settle(second)
    old, new = (s.get("PersistentVolumeClaim", "c-0") for s in (first, after))
    assert old is not None and new is not None and old["metadata"]["uid"] != new["metadata"]["uid"]
    assert after.says("Ready") == "True Succeeded"


def test_jobs_that_are_not_this_caches_are_left_alone(serving: State) -> None:
    job = theirs("Job", "c-0-gc-12345678-1")
    job["metadata"]["labels"] = {
        constants.LABEL_MANAGED_BY: constants.FIELD_MANAGER,
        constants.LABEL_CACHE: "c",
        constants.LABEL_MEMBER: "0",
    }
    job["spec"] = {"template": {"spec": {}}}
    job["status"] = {
        "conditions": [
            {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ]
    }
    after = scenario.settle(serving.with_object(job))
    assert after.get("Job", job["metadata"]["name"]) == job


# -- events --------------------------------------------------------------------------------------------------------------


def test_events_tell_the_transitions_and_nothing_twice(serving: State) -> None:
    told = [(event.type, event.reason) for event in serving.events]
    assert ("Normal", "Succeeded") in told
    assert len(told) == len(set(told))


# -- suspension ----------------------------------------------------------------------------------------------------------


def test_a_suspended_cache_is_left_as_it_is_and_says_so(serving: State) -> None:
    edit = EDITS["another image"]
    suspended = scenario.settle(serving.edited(suspend=True, **edit))
    assert suspended.objects == serving.objects
    assert suspended.says("Ready") == "False Suspended"
    assert suspended.says("Reconciling") == ""
    resumed = scenario.settle(suspended.edited(suspend=False))
    assert resumed.says("Ready") == "True Succeeded"


def test_a_suspended_cache_with_nothing_to_do_stays_ready(serving: State) -> None:
    suspended = scenario.settle(serving.edited(suspend=True))
    assert suspended.objects == serving.objects
    assert suspended.says("Ready").startswith("True")


def test_a_new_cache_that_is_suspended_gets_nothing() -> None:
    after = scenario.settle(State(cache=builders.cache_raw(suspend=True)))
    assert after.objects == {}
    assert after.says("Ready") == "False Suspended"
    assert after.says("Reconciling") == ""
