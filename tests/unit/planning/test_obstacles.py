"""What stands in the way from outside: other people's pods on the claim, quotas, a lost TTL state, a prepare that hangs.

What contributes: where the migration is when it begins · whether it ends by itself · how often it comes again.
"""

from __future__ import annotations

from typing import Any

import pytest

from pullthrough.models import constants
from tests import builders, scenario
from tests.scenario import State

ON = {"gc": {"mode": "Enabled", "ttl": "1h"}}
CLAIM = f"{builders.NAME}-0"


@pytest.fixture(scope="module")
def serving() -> State:
    return scenario.settle(State())


@pytest.fixture(scope="module")
def collecting(serving: State) -> State:
    return scenario.settle(serving.edited(**ON))


def somebodys_pod(**changes: Any) -> dict[str, Any]:
    """Somebody's pod that can write to the claim; `changes` are merged into it."""
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "debug", "namespace": builders.NAMESPACE, "uid": "uid-debug"},
        "spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
        "status": {"phase": "Running"},
    }
    merged: dict[str, Any] = builders.merged(pod, changes)
    return merged


def passes(state: State, number: int, seconds: float = 5) -> State:
    for _ in range(number):
        state = scenario.tick(scenario.run(state)).after(seconds=seconds)
    return state


# -- somebody else on the storage ------------------------------------------------------------------------------------------


def test_no_registry_is_started_where_somebody_elses_pod_can_write() -> None:
    state = passes(State().with_world(intruder=somebodys_pod()), 10)
    assert state.get("StatefulSet", CLAIM) is None
    assert state.says("Stalled") == "True StorageInUse"
    message = state.condition("Stalled")["message"]
    assert CLAIM in message and "debug" in message and "read-only" in message
    assert scenario.settle(state.with_world(intruder=None)).says("Ready") == "True Succeeded"


def test_gc_is_not_turned_on_beside_somebody_elses_pod(serving: State) -> None:
    state = passes(serving.with_world(intruder=somebodys_pod()).edited(**ON), 20)
    assert state.mode == "Disabled" and state.pod == serving.pod and state.of("Job") == []
    assert state.says("Migrating") == "False StorageInUse"
    assert state.says("Available") == "True MembersReady"
    assert scenario.settle(state.with_world(intruder=None)).mode == "Enabled"


def test_one_that_comes_while_the_job_runs_is_found_before_the_roll(serving: State) -> None:
    state = serving.with_world(job="hangs").edited(**ON)
    state = scenario.story(state, lambda s: s.of("Job"))
    state = passes(state.with_world(job="succeeds", intruder=somebodys_pod()), 10)
    assert state.mode == "Disabled"
    assert state.says("Stalled") == "True StorageInUse"


READ_ONLY_MOUNT = {
    "containers": [
        {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}]}
    ]
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"status": {"phase": "Succeeded"}}, id="it has ended"),
        pytest.param({"status": {"phase": "Failed"}}, id="it has failed"),
        pytest.param({"spec": READ_ONLY_MOUNT}, id="it mounts read-only"),
        pytest.param(
            {
                "spec": {
                    "volumes": [
                        {
                            "name": "v",
                            "persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True},
                        }
                    ]
                }
            },
            id="its volume is read-only",
        ),
        pytest.param(
            {"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]}},
            id="it has another claim",
        ),
    ],
)
def test_a_pod_that_cannot_write_is_no_hindrance(serving: State, changes: dict[str, Any]) -> None:
    state = serving.with_world(intruder=somebodys_pod(**changes)).edited(**ON)
    assert scenario.settle(state).mode == "Enabled"


def test_our_own_pod_whose_labels_somebody_removed_is_still_ours(serving: State) -> None:
    assert serving.pod is not None
    pod = scenario.copied(serving.pod)
    pod["metadata"]["labels"] = {}
    state = serving.with_world(intruder=pod).edited(**ON)
    assert scenario.settle(state).mode == "Enabled"


def test_what_serves_is_not_disturbed_by_a_look_at_its_volume(collecting: State) -> None:
    state = passes(collecting.with_world(intruder=somebodys_pod()), 5)
    assert state.pod == collecting.pod and state.says("Ready") == "True Succeeded"


# -- quotas and policies -----------------------------------------------------------------------------------------------------

QUOTA = (
    'pods "c" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'
)


def test_a_job_whose_pod_would_be_refused_is_not_made_and_the_condition_says_why(
    serving: State,
) -> None:
    state = passes(serving.with_world(quota=QUOTA).edited(**ON), 10)
    assert state.of("Job") == [] and state.mode == "Disabled" and state.pod == serving.pod
    assert state.says("Migrating") == "True MigrationRetrying"
    assert "exceeded quota: small" in state.condition("Migrating")["message"]
    assert state.says("Ready") == "False MigrationRetrying"
    assert state.says("Available") == "True MembersReady"
    assert scenario.settle(state.with_world(quota="")).mode == "Enabled"


def test_a_refusal_that_lasts_is_said_once(serving: State) -> None:
    state = passes(serving.with_world(quota=QUOTA).edited(**ON), 30)
    told = [e for e in state.events[len(serving.events) :] if "exceeded quota" in e.message]
    assert len(told) == 1, told


# -- a lost TTL state --------------------------------------------------------------------------------------------------------


def test_a_lost_state_restarts_the_member_once_and_changes_nothing_else(collecting: State) -> None:
    after = scenario.settle(collecting.with_world(loses_state=True))
    assert after.pod is not None and collecting.pod is not None
    assert after.pod["metadata"]["uid"] != collecting.pod["metadata"]["uid"]
    before, now = dict(collecting.template_annotations), dict(after.template_annotations)
    assert now.pop(constants.ANNOTATION_PREPARED_AGAIN)
    for mark in (constants.ANNOTATION_TEMPLATE, constants.ANNOTATION_ASKED):
        assert before.pop(mark) != now.pop(mark)
    assert before == now
    assert after.says("Ready") == "True Succeeded"
    assert after.status["collectedBy"] == collecting.status["collectedBy"]


def test_a_state_lost_again_restarts_at_most_hourly_and_a_person_is_asked(
    collecting: State,
) -> None:
    state = collecting.with_world(loses_state=True, loses_state_again=True)
    restarts = []
    for _ in range(400):
        before = state.pod and state.pod["metadata"]["uid"]
        state = scenario.tick(scenario.run(state)).after(seconds=30)
        if state.pod is not None and before not in (None, state.pod["metadata"]["uid"]):
            restarts.append(state.now)
    assert len(restarts) <= 4, restarts  # in three hours and twenty minutes
    assert state.says("Stalled") == "True StateLost"
    assert state.says("Available") == "True MembersReady"
    assert "who else writes" in state.condition("Stalled")["message"]


def test_a_lost_state_waits_for_the_upstream(collecting: State) -> None:
    state = passes(collecting.with_world(loses_state=True, is_upstream_reachable=False), 20)
    assert state.pod == collecting.pod
    assert state.says("Ready") == "False StateLost"
    assert "connection refused" in state.condition("Ready")["message"]


def test_later_changes_do_not_restart_for_the_old_loss(collecting: State) -> None:
    repaired = scenario.settle(collecting.with_world(loses_state=True))
    stamp = repaired.template_annotations[constants.ANNOTATION_PREPARED_AGAIN]
    after = scenario.settle(repaired.edited(podTemplate={"labels": {"a": "b"}}))
    assert after.template_annotations[constants.ANNOTATION_PREPARED_AGAIN] == stamp


# -- a prepare that hangs ----------------------------------------------------------------------------------------------------


def until_taken_back(state: State) -> float:
    """Seconds from the roll to the way back."""
    state = scenario.story(state, lambda s: s.mode == "Enabled")
    rolled = state.now
    return (scenario.story(state, lambda s: s.mode == "Disabled", passes=4000).now - rolled).seconds


def test_a_prepare_that_takes_ten_times_as_long_as_the_job_is_taken_back(serving: State) -> None:
    state = serving.with_world(prepare_hangs=True, job_seconds=60).edited(**ON)
    assert 600 <= until_taken_back(state) < 700


def test_a_quick_job_does_not_make_a_clock_that_is_behind_a_failure(serving: State) -> None:
    state = serving.with_world(prepare_hangs=True, job_seconds=1).edited(**ON)
    assert 120 <= until_taken_back(state) < 200


def test_a_verified_member_is_not_taken_back_however_long_prepare_takes(collecting: State) -> None:
    state = collecting.with_world(prepare_hangs=True).without("Pod", "c-0-0")
    assert passes(state, 100, seconds=60).mode == "Enabled"
