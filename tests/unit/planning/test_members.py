"""More than one member: each with its own objects, disturbed one at a time and only while the others serve.

What contributes: how many there are and how many are asked for · what changes · which member does not serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pullthrough.models import constants
from tests import builders, scenario
from tests.scenario import Raw, State

ON = {"gc": {"mode": "Enabled", "ttl": "1h"}}
OFF = {"gc": {"mode": "Disabled"}}
IMAGE = {"registry": {"image": "example.org/registry:3.1.1"}}


@pytest.fixture(scope="module")
def two() -> State:
    return scenario.settle(State(cache=builders.cache_raw(replicas=2)))


@pytest.fixture(scope="module")
def three() -> State:
    return scenario.settle(State(cache=builders.cache_raw(replicas=3)))


def names(state: State, kind: str) -> list[str]:
    return [obj["metadata"]["name"] for obj in state.of(kind)]


def mode(state: State, member: int) -> str:
    found = state.get("StatefulSet", f"c-{member}")
    assert found is not None
    annotations = found["spec"]["template"]["metadata"]["annotations"]
    return str(annotations[constants.ANNOTATION_GC_MODE])


def pods(state: State) -> dict[str, Raw]:
    return {
        pod["metadata"]["name"]: pod
        for pod in state.of("Pod")
        if constants.ANNOTATION_TEMPLATE in pod["metadata"]["annotations"]
    }


def serving(state: State) -> int:
    return sum(scenario.is_ready(pod) for pod in pods(state).values())


def watched(state: State, passes: int = 120, seconds: float = 2) -> Iterator[State]:
    for _ in range(passes):
        state = scenario.tick(scenario.run(state)).after(seconds=seconds)
        yield state


def test_each_member_has_its_own_claim_statefulset_and_service(two: State) -> None:
    assert names(two, "StatefulSet") == ["c-0", "c-1"]
    assert names(two, "PersistentVolumeClaim") == ["c-0", "c-1"]
    assert names(two, "Service") == ["c", "c-0", "c-1"]
    assert len(two.of("ConfigMap")) == 1, "the same configuration for both"
    assert two.says("Ready") == "True Succeeded"
    assert [m["name"] for m in two.status["members"]] == ["c-0", "c-1"]
    assert (two.status["replicas"], two.status["readyReplicas"]) == (2, 2)
    assert "pullthrough.dev/cache=c" in two.status["selector"]


def test_the_common_service_selects_all_members_and_each_own_service_its_own(two: State) -> None:
    selectors = {s["metadata"]["name"]: s["spec"]["selector"] for s in two.of("Service")}
    for number in (0, 1):
        pod = two.get("Pod", f"c-{number}-0")
        assert pod is not None
        chosen = {
            name
            for name, selector in selectors.items()
            if selector.items() <= pod["metadata"]["labels"].items()
        }
        assert chosen == {"c", f"c-{number}"}


def test_a_budget_keeps_all_but_one_up_from_two_members_on(two: State) -> None:
    (budget,) = two.of("PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == 1
    assert scenario.settle(two.edited(replicas=3)).of("PodDisruptionBudget")[0]["spec"] == {
        **budget["spec"],
        "minAvailable": 2,
    }
    one = scenario.settle(two.edited(replicas=1))
    assert one.of("PodDisruptionBudget") == []
    assert scenario.settle(State()).of("PodDisruptionBudget") == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(IMAGE, id="another image"),
        pytest.param(ON, id="gc on"),
        pytest.param({**ON, **IMAGE}, id="gc on and another image"),
        pytest.param({"podTemplate": {"labels": {"a": "b"}}}, id="labels"),
    ],
)
def test_a_rollout_never_takes_more_than_one_member_away(
    three: State, change: dict[str, Any]
) -> None:
    before = pods(three)
    start = three.edited(**change)
    for state in watched(start):
        assert serving(state) >= 2
    after = pods(state)
    assert state.says("Ready") == "True Succeeded"
    assert set(after) == set(before)
    assert all(after[n]["metadata"]["uid"] != before[n]["metadata"]["uid"] for n in after)


def test_turning_off_goes_in_turn_too(two: State) -> None:
    on = scenario.settle(two.edited(**ON))
    assert [mode(on, n) for n in (0, 1)] == ["Enabled", "Enabled"]
    assert on.status["gc"] == "Enabled 1h"
    for state in watched(on.edited(**OFF)):
        assert serving(state) >= 1
    assert [mode(state, n) for n in (0, 1)] == ["Disabled", "Disabled"]
    assert state.status["gc"] == "Disabled"


def test_members_migrate_one_at_a_time(two: State) -> None:
    seen = list(watched(two.edited(**ON)))
    state = seen[-1]
    assert max(len(one.of("Job")) for one in seen) == 1
    assert [mode(state, n) for n in (0, 1)] == ["Enabled", "Enabled"]
    assert state.status["collectedBy"] == max(
        m["gc"]["collectedBy"] for m in state.status["members"]
    )


def test_a_member_that_does_not_come_up_stops_the_rollout_and_its_correction_goes_on(
    two: State,
) -> None:
    bad = "example.org/no-such:1"
    start = two.with_world(bad_images=frozenset({bad})).edited(registry={"image": bad})
    for state in watched(start, 60):
        assert serving(state) >= 1
    assert state.says("Ready") == "False ImagePullFailed"
    assert state.says("Available") == "True MembersReady"
    assert "1 of 2 members serve" in state.condition("Available")["message"]
    stuck = state.edited(**IMAGE)
    for state in watched(stuck, 60):
        assert serving(state) >= 1
    assert state.says("Ready") == "True Succeeded"
    images = {p["spec"]["containers"][0]["image"] for p in pods(state).values()}
    assert images == {"example.org/registry:3.1.1"}


def test_a_job_that_fails_at_one_member_lets_the_rest_of_the_cache_be(two: State) -> None:
    start = two.with_world(job="fails").edited(**ON)
    for state in watched(start, 60):
        assert serving(state) == 2
    assert state.says("Migrating") == "True MigrationRetrying"
    assert state.says("Ready") == "False MigrationRetrying"
    after = scenario.settle(state.with_world(job="succeeds"))
    assert after.says("Ready") == "True Succeeded"


def test_a_pod_lost_during_another_members_migration_holds_the_roll_back(two: State) -> None:
    state = scenario.story(two.edited(**ON), lambda s: any(done(j) for j in s.of("Job")))
    (job,) = state.of("Job")
    migrating = int(job["metadata"]["labels"][constants.LABEL_MEMBER])
    other = 1 - migrating
    lost = state.with_world(keeps_terminating=True).without("Pod", f"c-{other}-0")
    for state in watched(lost, 10):
        assert mode(state, migrating) == "Disabled"
        assert scenario.is_ready(state.get("Pod", f"c-{migrating}-0"))
    state = scenario.settle(state.with_world(keeps_terminating=False))
    assert [mode(state, n) for n in (0, 1)] == ["Enabled", "Enabled"]


def done(job: Raw) -> bool:
    return bool(job.get("status", {}).get("conditions"))


def test_with_a_spec_that_cannot_be_read_any_member_that_serves_counts(two: State) -> None:
    lost = two.with_world(keeps_terminating=True).without("Pod", "c-0-0")
    state = scenario.run(lost.edited(gc={"ttl": "nonsense"}))
    assert state.says("Stalled") == "True InvalidSpec"
    assert state.says("Available") == "True MembersReady"


# -- scaling ---------------------------------------------------------------------------------------------------------------


def test_a_member_more_disturbs_none_that_is_there(two: State) -> None:
    after = scenario.settle(two.edited(replicas=3))
    assert names(after, "StatefulSet") == ["c-0", "c-1", "c-2"]
    assert {n: p["metadata"]["uid"] for n, p in pods(two).items()}.items() <= {
        n: p["metadata"]["uid"] for n, p in pods(after).items()
    }.items()


def test_scaled_down_the_claim_stays_and_everything_else_of_the_member_goes(three: State) -> None:
    after = scenario.settle(three.edited(replicas=1))
    assert names(after, "StatefulSet") == ["c-0"]
    assert names(after, "Service") == ["c", "c-0"]
    assert names(after, "PersistentVolumeClaim") == ["c-0", "c-1", "c-2"]
    assert after.says("Ready") == "True Succeeded"
    assert [m["name"] for m in after.status["members"]] == ["c-0"]
    again = scenario.settle(after.edited(replicas=3))
    assert again.says("Ready") == "True Succeeded"
    claims = {
        c["metadata"]["name"]: c["metadata"]["uid"] for c in three.of("PersistentVolumeClaim")
    }
    assert claims == {
        c["metadata"]["name"]: c["metadata"]["uid"] for c in again.of("PersistentVolumeClaim")
    }


def test_scaled_down_with_when_scaled_delete_the_claim_goes_once_its_pod_has(three: State) -> None:
    start = three.edited(
        replicas=2, storage={"retentionPolicy": {"whenScaled": "Delete"}}
    ).with_world(keeps_terminating=True)
    for state in watched(start, 20):
        assert state.get("PersistentVolumeClaim", "c-2") is not None
    assert state.says("Reconciling") in ("True MemberRemoved", "")
    after = scenario.settle(state.with_world(keeps_terminating=False))
    assert names(after, "PersistentVolumeClaim") == ["c-0", "c-1"]
    assert after.says("Ready") == "True Succeeded"


def test_a_claim_that_says_it_is_somebody_elses_is_never_deleted(three: State) -> None:
    claim = scenario.copied(three.get("PersistentVolumeClaim", "c-2"))
    claim["metadata"]["annotations"][constants.ANNOTATION_USED_BY] = "uid-other/2"
    state = three.with_object(claim)
    after = scenario.settle(
        state.edited(replicas=2, storage={"retentionPolicy": {"whenScaled": "Delete"}})
    )
    assert "c-2" in names(after, "PersistentVolumeClaim")


def test_scaled_down_in_the_middle_of_a_migration_leaves_nothing(three: State) -> None:
    state = scenario.story(three.with_world(job="hangs").edited(**ON), lambda s: s.of("Job"))
    after = scenario.settle(state.with_world(job="succeeds").edited(replicas=1))
    assert after.of("Job") == []
    assert mode(after, 0) == "Enabled"
    assert names(after, "StatefulSet") == ["c-0"]
