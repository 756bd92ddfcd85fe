"""Turning garbage collection on and off, pass by pass, with what can go wrong on the way.

What contributes: the wanted mode and when it changes · how the Job ends · whether the upstream answers · whether the
member comes up · where the operator dies. `scenario.watch` holds every roll to its gate (M1, M3).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from pullthrough.models import conditions, constants
from pullthrough.models.plan import Apply, Plan
from pullthrough.models.snapshot import Ref
from tests import builders, scenario
from tests.scenario import State

ON = {"gc": {"mode": "Enabled", "ttl": "1h"}}
OFF = {"gc": {"mode": "Disabled"}}


@pytest.fixture(scope="module")
def serving() -> State:
    return scenario.settle(State())


def has_job(state: State) -> bool:
    return bool(state.of("Job"))


def is_on(state: State) -> bool:
    return state.mode == "Enabled"


def test_turning_on_ends_with_gc_on_and_nothing_left(serving: State) -> None:
    after = scenario.settle(serving.edited(**ON))
    assert after.mode == "Enabled"
    assert after.template_annotations[constants.ANNOTATION_MIGRATION].startswith("uid-")
    assert after.of("Job") == []
    assert after.says("Ready") == "True Succeeded"
    assert after.says("Migrating") == "False MigrationCompleted"
    assert after.status["members"][0]["gc"]["collectedBy"] == after.status["collectedBy"]


def test_while_the_job_runs_the_cache_is_ready_and_migrating_and_not_reconciling(
    serving: State,
) -> None:
    running = serving.with_world(job="hangs").edited(**ON)
    running = scenario.run(scenario.story(running, has_job))
    running = scenario.run(scenario.tick(running))
    assert running.says("Ready") == "True Succeeded"
    assert running.says("Migrating") == "True MigrationRunning"
    assert running.says("Reconciling") == ""
    assert running.pod == serving.pod


def test_the_member_restarts_exactly_once(serving: State) -> None:
    pods = set()
    state = serving.edited(**ON)
    for _ in range(40):
        state = scenario.tick(scenario.run(state)).after(seconds=2)
        if state.pod is not None:
            pods.add(state.pod["metadata"]["uid"])
    assert is_on(state) and len(pods) == 2


def test_during_the_roll_reconciling_is_said(serving: State) -> None:
    rolled = scenario.run(scenario.story(serving.edited(**ON), is_on))
    assert rolled.says("Reconciling").startswith("True")
    assert rolled.says("Ready").startswith("False")
    assert rolled.says("Migrating").startswith("True")


def test_other_changes_roll_first_with_the_mode_unchanged(serving: State) -> None:
    state = serving.edited(**ON, registry={"image": "example.org/registry:3.1.1"})
    after = scenario.run(state)
    assert after.mode == "Disabled"
    assert after.stateful_set["spec"]["template"]["spec"]["containers"][0]["image"].endswith(
        ":3.1.1"
    )
    assert after.of("Job") == []
    assert is_on(scenario.settle(after))


def test_a_job_that_fails_is_tried_again_with_back_off_and_costs_nothing(serving: State) -> None:
    state = serving.with_world(job="fails").edited(**ON)
    attempts: list[float] = []
    for _ in range(240):
        before = {j["metadata"]["uid"] for j in state.of("Job")}
        state = scenario.run(state)
        if {j["metadata"]["uid"] for j in state.of("Job")} - before:
            attempts.append((state.now - scenario.START).total_seconds())
        state = scenario.tick(state).after(seconds=5)
        assert len(state.of("Job")) <= 1
    gaps = [b - a for a, b in itertools.pairwise(attempts)]
    assert gaps[:5] == sorted(gaps[:5]) and gaps[0] >= 10, gaps
    assert max(gaps) <= 310, gaps
    assert state.mode == "Disabled" and state.pod == serving.pod
    assert state.says("Available") == "True MembersReady"
    assert state.says("Ready").startswith("False")
    assert "enlarge the volume" in state.condition("Migrating")["message"]
    cured = scenario.settle(state.with_world(job="succeeds"))
    assert is_on(cured) and cured.says("Ready") == "True Succeeded"


def test_a_failing_job_is_no_flood_of_events(serving: State) -> None:
    state = serving.with_world(job="fails").edited(**ON)
    for _ in range(120):
        state = scenario.tick(scenario.run(state)).after(seconds=5)
    warnings = [e for e in state.events[len(serving.events) :] if e.type == "Warning"]
    assert 1 <= len(warnings) <= 8, [e.reason for e in warnings]


def test_the_upstream_down_the_member_is_not_rolled(serving: State) -> None:
    state = serving.with_world(is_upstream_reachable=False).edited(**ON)
    for _ in range(120):
        state = scenario.tick(scenario.run(state)).after(seconds=3)
    assert state.mode == "Disabled" and state.pod == serving.pod
    assert state.says("Migrating") == "True WaitingForUpstream"
    assert "connection refused" in state.condition("Migrating")["message"]
    assert state.says("Ready") == "True Succeeded"
    assert is_on(scenario.settle(state.with_world(is_upstream_reachable=True)))


def test_a_result_that_became_stale_is_made_again(serving: State) -> None:
    state = scenario.story(
        serving.edited(gc={"mode": "Enabled", "ttl": "2m"}),
        lambda s: any(job.get("status", {}).get("conditions") for job in s.of("Job")),
    )
    first = state.of("Job")[0]["metadata"]["uid"]
    state = state.with_world(is_upstream_reachable=False)
    for _ in range(10):
        state = scenario.tick(scenario.run(state)).after(seconds=1)
    after = scenario.settle(state.after(minutes=3).with_world(is_upstream_reachable=True))
    assert is_on(after)
    assert after.template_annotations[constants.ANNOTATION_MIGRATION] != first


def test_an_outage_of_the_upstream_makes_no_job_after_job(serving: State) -> None:
    """Each leaves a file on the volume."""
    state = serving.edited(gc={"mode": "Enabled", "ttl": "1m"})
    state = scenario.story(state, has_job).with_world(is_upstream_reachable=False)
    jobs = set()
    for _ in range(120):
        state = scenario.tick(scenario.run(state)).after(seconds=30)
        jobs |= {job["metadata"]["uid"] for job in state.of("Job")}
    assert len(jobs) == 1


def test_the_pod_deleted_while_the_job_hangs_is_back_at_once_and_the_job_gone(
    serving: State,
) -> None:
    state = scenario.story(serving.with_world(job="hangs").edited(**ON), has_job)
    state = scenario.run(scenario.tick(state)).without("Pod", "c-0-0")
    state = scenario.run(scenario.tick(state))
    assert state.of("Job") == []
    after = scenario.settle(state.with_world(job="succeeds"))
    assert is_on(after)


@pytest.mark.parametrize("container", ["prepare", "registry"])
def test_a_member_that_does_not_come_up_is_taken_back_and_given_up_after_three_times(
    serving: State, container: str
) -> None:
    state = serving.with_world(crashes_with_gc=container).edited(**ON)
    rolls = 0
    for _ in range(150):
        before = state.mode
        state = scenario.tick(scenario.run(state)).after(seconds=3)
        rolls += before == "Disabled" and is_on(state)
    assert rolls == 3
    assert state.mode == "Disabled"
    assert state.says("Stalled") == "True MigrationFailed"
    assert state.says("Available") == "True MembersReady"
    assert state.of("Job") == []
    cured = scenario.settle(state.with_world(crashes_with_gc="").edited(gc={"ttl": "2h"}))
    assert is_on(cured), "a change of the spec tries again"


def test_a_verified_member_is_never_taken_back(serving: State) -> None:
    on = scenario.settle(serving.edited(**ON))
    state = on.with_world(crashes_with_gc="registry").without("Pod", "c-0-0")
    for _ in range(60):
        state = scenario.tick(scenario.run(state)).after(seconds=5)
    assert is_on(state)
    assert state.says("Ready") == "False MemberCrashing"


def test_a_pending_pod_on_trial_is_never_taken_back(serving: State) -> None:
    state = scenario.story(serving.edited(**ON), is_on).with_world(is_scheduler_able=False)
    for _ in range(120):
        state = scenario.tick(scenario.run(state)).after(seconds=5)
    assert is_on(state)
    assert state.says("Ready") == "False MemberUnschedulable"


def test_turning_off_needs_no_job(serving: State) -> None:
    on = scenario.settle(serving.edited(**ON))
    after = scenario.run(on.with_world(job="fails", is_upstream_reachable=False).edited(**OFF))
    assert after.mode == "Disabled"
    off = scenario.settle(after)
    assert off.says("Ready") == "True Succeeded"
    assert constants.ANNOTATION_MIGRATION not in off.template_annotations
    assert "collectedBy" not in off.status


def test_turned_off_while_the_job_runs_nothing_restarts(serving: State) -> None:
    state = scenario.story(serving.with_world(job="hangs").edited(**ON), has_job)
    after = scenario.settle(scenario.tick(state).edited(**OFF))
    assert after.pod == serving.pod
    assert after.of("Job") == []


def test_off_and_on_and_off_and_on_ends_on(serving: State) -> None:
    state = serving
    for gc in (ON, OFF, ON, OFF, ON):
        state = scenario.tick(scenario.run(state.edited(**gc))).after(seconds=1)
    assert is_on(scenario.settle(state))


def test_with_gc_on_another_ttl_rolls_without_a_job(serving: State) -> None:
    on = scenario.settle(serving.edited(**ON))
    state = on.with_world(job="hangs").edited(gc={"ttl": "2h"})
    after = scenario.settle(state)
    assert after.template_annotations[constants.ANNOTATION_GC_TTL] == "2h"
    assert after.says("Ready") == "True Succeeded"


def test_with_gc_on_another_ttl_moves_the_time_by_when_all_is_collected(serving: State) -> None:
    on = scenario.settle(serving.edited(**ON))
    before = on.status["collectedBy"]
    after = scenario.settle(on.edited(gc={"ttl": "48h"}))
    assert after.status["collectedBy"] > before
    same = scenario.settle(after.edited(podTemplate={"labels": {"a": "b"}}))
    assert same.status["collectedBy"] == after.status["collectedBy"]


def test_a_job_that_passed_its_deadline_is_told_in_kubernetes_words(serving: State) -> None:
    state = scenario.story(serving.with_world(job="hangs").edited(**ON), has_job)
    job = state.of("Job")[0]
    ended = {
        "type": "Failed",
        "status": "True",
        "reason": "DeadlineExceeded",
        "message": "Job was active longer than specified deadline",
        "lastTransitionTime": conditions.format_time(state.now),
    }
    failed = scenario.run(state.with_object({**job, "status": {"conditions": [ended]}}))
    assert failed.says("Migrating") == "True MigrationRetrying"
    assert "DeadlineExceeded" in failed.condition("Migrating")["message"]


def test_a_job_whose_pod_finds_no_place_says_so(serving: State) -> None:
    state = scenario.tick(scenario.story(serving.with_world(job="hangs").edited(**ON), has_job))
    pod = next(p for p in state.of("Pod") if p["metadata"]["name"] != "c-0-0")
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/1 nodes: insufficient cpu",
    }
    state = scenario.run(state.with_object({**pod, "status": {"conditions": [unscheduled]}}))
    assert "insufficient cpu" in state.condition("Migrating")["message"]
    assert state.says("Ready") == "True Succeeded"


def test_with_gc_off_another_ttl_restarts_nothing(serving: State) -> None:
    after = scenario.settle(serving.edited(gc={"ttl": "2h"}))
    assert after.pod == serving.pod


def test_a_volume_for_one_pod_only_is_turned_on_without_a_job() -> None:
    volume = {"volume": {"accessMode": "ReadWriteOncePod"}}
    serving = scenario.settle(State(cache=builders.cache_raw(storage=volume)))
    state = serving.edited(**ON)
    for _ in range(30):
        state = scenario.tick(scenario.run(state)).after(seconds=1)
        assert state.of("Job") == []
    assert is_on(state) and state.says("Ready") == "True Succeeded"


def test_a_retained_claim_keeps_its_access_mode_whatever_the_spec_says_now() -> None:
    volume = {"volume": {"accessMode": "ReadWriteOncePod"}}
    serving = scenario.settle(State(cache=builders.cache_raw(storage=volume)))
    claim = serving.get("PersistentVolumeClaim", "c-0")
    assert claim is not None
    again = scenario.settle(State().with_object(claim))
    state = again.edited(**ON)
    for _ in range(30):
        state = scenario.tick(scenario.run(state)).after(seconds=1)
        assert state.of("Job") == []
    assert is_on(state)


def test_a_roll_is_decided_on_a_live_look(serving: State) -> None:
    rolling = scenario.story(serving.edited(**ON), lambda s: is_rolling(scenario.decide(s)))
    confirmed = set(scenario.decide(rolling).confirm)
    assert {
        Ref("PullThroughCache", "c"),
        Ref("StatefulSet", "c-0"),
        Ref("Pod", "c-0-0"),
        Ref("Job", rolling.of("Job")[0]["metadata"]["name"]),
    } <= confirmed


def is_rolling(plan: Plan) -> bool:
    return any(isinstance(a, Apply) and a.desired["kind"] == "StatefulSet" for a in plan.actions)


def test_suspended_in_the_middle_nothing_moves_until_it_is_resumed(serving: State) -> None:
    state = scenario.tick(scenario.run(serving.edited(**ON)))
    suspended = scenario.settle(state.edited(suspend=True))
    assert suspended.mode == "Disabled"
    assert suspended.says("Reconciling") == ""
    assert is_on(scenario.settle(suspended.edited(suspend=False)))


def test_a_canary_that_stays_is_said(serving: State) -> None:
    after = scenario.settle(serving.with_world(canary="Failed").edited(**ON))
    assert after.says("Ready") == "False CanaryFailed"
    assert after.says("Available") == "True MembersReady"


def test_ready_waits_for_the_canary_and_says_so(serving: State) -> None:
    state = serving.with_world(canary="Pending").edited(**ON)
    for _ in range(40):
        state = scenario.tick(scenario.run(state)).after(seconds=2)
    assert is_on(state)
    assert state.says("Ready") == "False CanaryPending"
    assert state.says("Reconciling") == "True CanaryPending"
    assert state.says("Migrating") == "True CanaryPending"
    assert state.says("Available") == "True MembersReady"
    assert scenario.settle(state.with_world(canary="Passed")).says("Ready") == "True Succeeded"


def test_a_keeper_that_was_silent_after_the_roll_is_asked_until_it_answers(serving: State) -> None:
    state = scenario.story(serving.edited(**ON), is_on).with_world(keeper_error="timed out")
    for _ in range(20):
        state = scenario.tick(scenario.run(state)).after(seconds=2)
    assert state.says("Ready") == "False CanaryPending"
    assert "timed out" in state.condition("Ready")["message"]
    assert scenario.passed(state)[1].requeue_after is not None
    assert scenario.settle(state.with_world(keeper_error="")).says("Ready") == "True Succeeded"


def test_what_the_canary_proved_stays_proven_when_the_keeper_falls_silent(serving: State) -> None:
    on = scenario.settle(serving.edited(**ON))
    assert on.stateful_set["metadata"]["annotations"][constants.ANNOTATION_PROVEN]
    silent = scenario.settle(on.with_world(keeper_error="timed out"))
    assert silent.says("Ready") == "True Succeeded"
    assert silent.pod == on.pod


def test_artifacts_that_stay_uncovered_are_said(serving: State) -> None:
    after = scenario.settle(serving.with_world(uncovered=3).edited(**ON))
    assert after.says("Ready") == "False Incomplete"
    assert scenario.settle(after.with_world(uncovered=0)).says("Ready") == "True Succeeded"


def test_what_prepare_could_not_do_is_said(serving: State) -> None:
    after = scenario.settle(
        serving.with_world(uncovered=14, problem="no space left on device").edited(**ON)
    )
    assert after.says("Ready") == "False Incomplete"
    message = after.condition("Ready")["message"]
    assert "14 artifacts" in message and "no space left" in message


# -- the two properties that make an operator level-based -----------------------------------------------------------------

STORIES: dict[str, Callable[[State], State]] = {
    "on": lambda s: s.edited(**ON),
    "on with another image": lambda s: s.edited(
        **ON, registry={"image": "example.org/registry:3.1.1"}
    ),
    "another series": lambda s: s.edited(registry={"series": "v2"}),
    "a job that fails first": lambda s: s.with_world(job="fails").edited(**ON),
    "a claim deleted with the cache": lambda s: s.edited(
        storage={"retentionPolicy": {"whenDeleted": "Delete"}, "volume": {"size": "20Gi"}}
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_settling_twice_is_settling_once(serving: State, name: str) -> None:
    once = scenario.settle(STORIES[name](serving).with_world(job="succeeds"))
    assert scenario.is_same(scenario.settle(once), once)


@pytest.mark.parametrize("name", ["new", *STORIES])
def test_dying_after_any_action_of_any_pass_ends_the_same(serving: State, name: str) -> None:
    start = State(cache=builders.cache_raw(**ON)) if name == "new" else STORIES[name](serving)
    wanted = scenario.essence(scenario.settle(start.with_world(job="succeeds")))
    state, deaths = start, 0
    for number in range(25):
        if number == 12:
            state = state.with_world(job="succeeds")
        for only in range(len(scenario.decide(state).actions)):
            died = scenario.tick(scenario.run(state, only=only)).with_world(job="succeeds")
            assert scenario.essence(scenario.settle(died.after(minutes=10))) == wanted, (
                number,
                only,
            )
            deaths += 1
        state = scenario.tick(scenario.run(state)).after(seconds=5)
    assert deaths


def test_the_same_arguments_give_the_same_plan(serving: State) -> None:
    state = serving.edited(**ON)
    assert scenario.decide(state) == scenario.decide(state)


def test_nothing_is_decided_from_the_status(serving: State) -> None:
    """Level-triggered: whatever the status says, the actions are the same."""
    moments: list[State] = []
    state: Any = serving.edited(**ON)
    for _ in range(25):
        moments.append(state)
        state = scenario.tick(scenario.run(state)).after(seconds=2)
    for moment in moments:
        forgotten = dataclasses.replace(moment, cache={**(moment.cache or {}), "status": {}})
        assert scenario.decide(forgotten).actions == scenario.decide(moment).actions
