"""The table over every observation that can occur.

What contributes to a decision: the wanted mode, the mode in the StatefulSet's template, other changes, the member's pod,
the newest Job, the keeper's probe, a roll on trial, reverts in this generation, a lost TTL state, other users of the storage, whose turn it is, and whether the
volume admits one pod.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pullthrough.gc import document, table
from pullthrough.gc.observation import (
    Job,
    Member,
    Observation,
    Pod,
    Repair,
    Reverts,
    all_consistent,
    inconsistency,
)
from pullthrough.gc.table import Step
from pullthrough.models.cache import GcMode

EVERYTHING = list(all_consistent())
QUIET = Observation(wanted=GcMode.ENABLED, member=Member.DISABLED, upstream_fresh=True)


def but(**changes: object) -> Observation:
    return dataclasses.replace(QUIET, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        pytest.param(
            but(member=Member.ABSENT, pod=Pod.NONE),
            Step.CREATE,
            id="nothing there: created in the wanted mode",
        ),
        pytest.param(
            but(member=Member.ABSENT, pod=Pod.OUTDATED),
            Step.WAIT_POD,
            id="an old pod must be gone first",
        ),
        pytest.param(but(), Step.CREATE_JOB, id="GC wanted: a Job first"),
        pytest.param(
            but(job=Job.RUNNING), Step.WAIT_JOB, id="nothing is stopped while the Job runs"
        ),
        pytest.param(
            but(job=Job.OBSTRUCTING, pod=Pod.STARTING),
            Step.DELETE_JOB,
            id="the Job never holds the member up",
        ),
        pytest.param(
            but(job=Job.FAILED_WAITING), Step.WAIT_RETRY, id="a failed Job waits its back-off"
        ),
        pytest.param(but(job=Job.FAILED_DUE), Step.CREATE_JOB, id="and is tried again"),
        pytest.param(but(job=Job.STALE), Step.DELETE_JOB, id="an old result counts as not run"),
        pytest.param(
            but(job=Job.SUCCEEDED, upstream_fresh=False),
            Step.WAIT_UPSTREAM,
            id="no roll into an outage of the upstream",
        ),
        pytest.param(but(job=Job.SUCCEEDED), Step.ROLL_ON, id="the Job succeeded: roll"),
        pytest.param(
            but(job=Job.SUCCEEDED, other_changes=True), Step.ROLL_OTHER, id="other changes go first"
        ),
        pytest.param(
            but(member=Member.ENABLED, on_trial=True, pod=Pod.STARTING),
            Step.WAIT_POD,
            id="on trial: wait",
        ),
        pytest.param(
            but(member=Member.ENABLED, on_trial=True),
            Step.VERIFY,
            id="on trial and ready: verified",
        ),
        pytest.param(
            but(member=Member.ENABLED, on_trial=True, pod=Pod.FAILING),
            Step.REVERT,
            id="on trial and failing: taken back",
        ),
        pytest.param(
            but(member=Member.ENABLED, pod=Pod.FAILING),
            Step.WAIT_POD,
            id="verified long ago and failing: never taken back",
        ),
        pytest.param(but(reverts=Reverts.WAITING), Step.WAIT_RETRY, id="after a revert: back-off"),
        pytest.param(but(reverts=Reverts.EXHAUSTED), Step.GIVE_UP, id="three reverts: a person"),
        pytest.param(
            but(wanted=GcMode.DISABLED, member=Member.ENABLED), Step.ROLL_OFF, id="off needs no Job"
        ),
        pytest.param(
            but(exclusive_volume=True), Step.ROLL_ON_ALONE, id="no Job on an exclusive volume"
        ),
        pytest.param(but(member=Member.ENABLED), Step.REST, id="settled"),
        pytest.param(
            but(member=Member.ENABLED, repair=Repair.DUE),
            Step.PREPARE_AGAIN,
            id="the state is lost: prepare again",
        ),
        pytest.param(
            but(member=Member.ENABLED, repair=Repair.DUE, upstream_fresh=False),
            Step.WAIT_UPSTREAM,
            id="not into an outage of the upstream",
        ),
        pytest.param(
            but(member=Member.ENABLED, repair=Repair.TOO_SOON),
            Step.REPAIR_IN_VAIN,
            id="at most hourly",
        ),
        pytest.param(
            but(member=Member.ENABLED, repair=Repair.DUE, storage_in_use=True),
            Step.STORAGE_IN_USE,
            id="a second writer must go first",
        ),
        pytest.param(
            but(wanted=GcMode.DISABLED, member=Member.ENABLED, repair=Repair.DUE),
            Step.ROLL_OFF,
            id="off needs no state",
        ),
        pytest.param(
            but(member=Member.ABSENT, pod=Pod.NONE, storage_in_use=True),
            Step.STORAGE_IN_USE,
            id="no second registry on a storage",
        ),
        pytest.param(
            but(job=Job.SUCCEEDED, storage_in_use=True),
            Step.STORAGE_IN_USE,
            id="no roll with a second writer",
        ),
        pytest.param(
            but(member=Member.ENABLED, storage_in_use=True),
            Step.REST,
            id="what serves goes on serving",
        ),
    ],
)
def test_a_situation_has_its_step(seen: Observation, step: Step) -> None:
    assert inconsistency(seen) is None
    assert table.next_step(seen) is step


def test_every_observation_has_a_row_and_every_row_an_observation() -> None:
    reached = {table.matching_row(seen).name for seen in EVERYTHING}
    assert reached == {row.name for row in table.TABLE}
    assert len(EVERYTHING) > 2000


def test_m1_no_member_is_rolled_to_gc_on_without_a_fresh_job_or_prepare_alone() -> None:
    for seen in EVERYTHING:
        match table.next_step(seen):
            case Step.ROLL_ON:
                assert seen.job is Job.SUCCEEDED, seen
            case Step.ROLL_ON_ALONE:
                assert seen.exclusive_volume, seen
            case _:
                pass


def test_m2_prepare_never_begins_where_another_registry_or_a_second_writer_may_run() -> None:
    """Only `prepare` and the registry write the state. A new StatefulSet starts both, so nothing may be left of an old
    one; a roll replaces the pod (its StatefulSet makes no second one), and the Job writes a file of its own."""
    for seen in EVERYTHING:
        if table.next_step(seen) is Step.CREATE:
            assert seen.pod is Pod.NONE and not seen.storage_in_use, seen
            assert seen.job in (Job.NONE, Job.TERMINATING), seen


def test_m4_no_step_takes_away_a_state_that_covers_what_is_served() -> None:
    """The state is set aside by turning off alone, and only where that is wanted or the switch is on trial; what each
    program deletes is the storage's, and tested there."""
    for seen in EVERYTHING:
        if table.next_step(seen) in (Step.ROLL_OFF, Step.REVERT):
            assert seen.wanted is GcMode.DISABLED or seen.on_trial, seen


def test_m5_what_a_step_leaves_behind_is_itself_an_observation_with_a_row() -> None:
    """Killed after any step, the next pass goes on from there; that all ways end the same is tested in planning."""
    for seen in EVERYTHING:
        after = perform(seen, table.next_step(seen))
        if after is None:
            continue
        if after.job is Job.RUNNING and after.pod is not Pod.READY:
            after = dataclasses.replace(after, job=Job.OBSTRUCTING)
        assert inconsistency(after) is None, (seen, after)
        table.matching_row(after)


def test_m3_nothing_that_serves_is_stopped_for_gc_before_the_gate_is_passed() -> None:
    for seen in EVERYTHING:
        if table.next_step(seen) in (Step.ROLL_ON, Step.ROLL_ON_ALONE):
            assert seen.pod is Pod.READY, seen
            assert seen.upstream_fresh, seen
            assert not seen.other_changes, seen


def test_nothing_starts_to_count_on_a_storage_that_somebody_else_writes() -> None:
    for seen in EVERYTHING:
        if seen.storage_in_use:
            assert table.next_step(seen) not in table.COUNTS_ON_THE_STORAGE, seen


def test_a_lost_state_restarts_only_a_serving_member_with_gc_on_and_its_upstream_there() -> None:
    for seen in EVERYTHING:
        if table.next_step(seen) is Step.PREPARE_AGAIN:
            assert seen.repair is Repair.DUE and seen.wanted is GcMode.ENABLED, seen
            assert seen.pod is Pod.READY and seen.upstream_fresh, seen


def test_only_a_trial_is_ever_taken_back() -> None:
    for seen in EVERYTHING:
        if table.next_step(seen) is Step.REVERT:
            assert seen.on_trial, seen
            assert seen.pod is Pod.FAILING, seen


def test_turning_off_never_waits_for_job_pod_or_upstream() -> None:
    for seen in EVERYTHING:
        if seen.wanted is GcMode.DISABLED and seen.member is Member.ENABLED and seen.turn:
            assert table.next_step(seen) in (Step.ROLL_OFF, Step.DELETE_JOB), seen


def test_a_member_that_serves_is_stopped_in_its_turn_alone() -> None:
    for seen in EVERYTHING:
        if seen.pod is Pod.READY and not seen.turn:
            assert table.next_step(seen) not in table.TAKES_THE_TURN, seen


def test_a_member_that_does_not_serve_waits_for_no_turn() -> None:
    for seen in EVERYTHING:
        if seen.pod is not Pod.READY:
            assert table.next_step(seen) is not Step.WAIT_TURN, seen


def test_no_job_runs_where_it_could_hold_the_member_up() -> None:
    for seen in EVERYTHING:
        if table.next_step(seen) is Step.CREATE_JOB:
            assert seen.pod is Pod.READY, seen
            assert not seen.exclusive_volume, seen
        if seen.job is Job.OBSTRUCTING:
            assert table.next_step(seen) is Step.DELETE_JOB, seen


def perform(seen: Observation, step: Step) -> Observation | None:
    """What the world looks like after a step, all going well; None: rests until something outside changes."""
    change = dataclasses.replace
    match step:
        case Step.CREATE:
            return change(seen, member=Member(seen.wanted.value), pod=Pod.STARTING)
        case Step.ROLL_OFF:
            return change(
                seen,
                member=Member.DISABLED,
                pod=Pod.STARTING,
                on_trial=False,
                other_changes=False,
                repair=Repair.NONE,
            )
        case Step.ROLL_OTHER:
            obstructed = Job.OBSTRUCTING if seen.job is Job.RUNNING else seen.job
            return change(
                seen, other_changes=False, pod=Pod.STARTING, job=obstructed, repair=Repair.NONE
            )
        case Step.ROLL_ON:
            return change(seen, member=Member.ENABLED, pod=Pod.STARTING, on_trial=True)
        case Step.ROLL_ON_ALONE:
            return change(seen, member=Member.ENABLED, pod=Pod.STARTING)
        case Step.CREATE_JOB:
            return change(seen, job=Job.RUNNING)
        case Step.DELETE_JOB:
            return change(seen, job=Job.TERMINATING)
        case Step.REVERT:
            return change(
                seen,
                member=Member.DISABLED,
                pod=Pod.STARTING,
                on_trial=False,
                other_changes=False,
                reverts=Reverts.WAITING,
            )
        case Step.PREPARE_AGAIN:
            return change(seen, repair=Repair.NONE, pod=Pod.STARTING)
        case Step.WAIT_TURN:
            return change(seen, turn=True)
        case Step.STORAGE_IN_USE:
            return change(seen, storage_in_use=False)
        case Step.REPAIR_IN_VAIN:
            return change(seen, repair=Repair.DUE)
        case Step.VERIFY:
            return change(seen, on_trial=False)
        case Step.WAIT_POD:
            gone = seen.member is Member.ABSENT
            return change(seen, pod=Pod.NONE if gone else Pod.READY)
        case Step.WAIT_JOB:
            return change(seen, job=Job.NONE if seen.job is Job.TERMINATING else Job.SUCCEEDED)
        case Step.WAIT_RETRY:
            if seen.reverts is Reverts.WAITING:
                return change(seen, reverts=Reverts.DUE)
            return change(seen, job=Job.FAILED_DUE)
        case Step.WAIT_UPSTREAM:
            return change(seen, upstream_fresh=True)
        case Step.GIVE_UP | Step.REST:
            return None


@pytest.mark.parametrize("wanted", list(GcMode))
def test_every_situation_comes_to_rest_in_the_wanted_mode(wanted: GcMode) -> None:
    for start in EVERYTHING:
        if start.wanted is not wanted:
            continue
        seen, steps = start, []
        for _ in range(20):
            step = table.next_step(seen)
            steps.append(step)
            after = perform(seen, step)
            if after is None:
                break
            if after.job is Job.RUNNING and after.pod is not Pod.READY:
                after = dataclasses.replace(after, job=Job.OBSTRUCTING)
            seen = after
        else:
            pytest.fail(f"no rest from {start}: {steps}")
        assert steps[-1] is Step.GIVE_UP or seen.member.value == wanted.value, (start, steps)


def test_the_document_is_what_the_table_says() -> None:
    assert Path("docs/gc.md").read_text() == document.page(), "run: make generate"
