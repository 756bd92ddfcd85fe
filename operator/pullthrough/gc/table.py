"""The table: the first row that matches an observation names the one thing to do for this member.

All that decides a transition stands in `TABLE`, in the order in which it counts. What a step does to objects is
planning's; docs/gc.md is generated from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pullthrough.gc.observation import Job, Member, Observation, Pod, Repair, Reverts
from pullthrough.models.cache import GcMode


class Step(StrEnum):
    """What to do with the member now. Exactly one at a time."""

    CREATE = "Create"
    """Make the StatefulSet in the wanted mode."""
    ROLL_OFF = "RollOff"
    """Apply the template with GC off."""
    ROLL_OTHER = "RollOther"
    """Apply the other changes, the mode unchanged."""
    ROLL_ON = "RollOn"
    """Apply the template with GC on, naming the Job."""
    ROLL_ON_ALONE = "RollOnAlone"
    """Apply the template with GC on; `prepare` does it all."""
    CREATE_JOB = "CreateJob"
    DELETE_JOB = "DeleteJob"
    PREPARE_AGAIN = "PrepareAgain"
    """Restart the member, nothing else changed, for `prepare` to rebuild the TTL state."""
    REVERT = "Revert"
    """Apply the template with GC off again and count it."""
    VERIFY = "Verify"
    """Note that the pod was seen ready under this migration."""
    WAIT_TURN = "WaitForTurn"
    """Other members are disturbed or do not serve."""
    WAIT_POD = "WaitForPod"
    WAIT_JOB = "WaitForJob"
    WAIT_RETRY = "WaitForRetry"
    WAIT_UPSTREAM = "WaitForUpstream"
    GIVE_UP = "GiveUp"
    """Three reverts in one generation: a person is asked."""
    REPAIR_IN_VAIN = "RepairInVain"
    """Restarted less than an hour ago, and the state is lost again: a person is asked, and an hour waited."""
    STORAGE_IN_USE = "StorageInUse"
    """A person is asked to end the other user."""
    REST = "Rest"


IRREVERSIBLE = frozenset(
    {
        Step.ROLL_ON,
        Step.ROLL_ON_ALONE,
        Step.ROLL_OFF,
        Step.ROLL_OTHER,
        Step.PREPARE_AGAIN,
        Step.REVERT,
    }
)
"""Steps that stop a serving registry."""

COUNTS_ON_THE_STORAGE = frozenset(
    {Step.CREATE, Step.CREATE_JOB, Step.ROLL_ON, Step.ROLL_ON_ALONE, Step.PREPARE_AGAIN}
)
"""Steps before which it is read live who else uses the claim."""

TAKES_THE_TURN = IRREVERSIBLE | {Step.CREATE_JOB}
"""Steps after which, in the same pass, no other member has its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table."""

    name: str
    when: str
    """The predicate in words, for people."""
    matches: Callable[[Observation], bool]
    step: Step
    why: str


def _on(seen: Observation) -> bool:
    return seen.wanted is GcMode.ENABLED


def _off(seen: Observation) -> bool:
    return seen.wanted is GcMode.DISABLED


def _switching_on(seen: Observation) -> bool:
    return _on(seen) and seen.member is Member.DISABLED


def _would_disturb(seen: Observation) -> bool:
    """Whether stopping this member now takes a serving one away, out of its turn."""
    return seen.pod is Pod.READY and not seen.turn


def _needs_repair(seen: Observation) -> bool:
    return _on(seen) and seen.repair is Repair.DUE


TABLE: tuple[Row, ...] = (
    Row(
        name="job of a vanished member",
        when="the StatefulSet is absent, and a Job is left",
        matches=lambda o: o.member is Member.ABSENT and o.job not in (Job.NONE, Job.TERMINATING),
        step=Step.DELETE_JOB,
        why="its result belongs to a StatefulSet that is gone",
    ),
    Row(
        name="pod of a vanished member",
        when="the StatefulSet is absent, and a pod of it is left",
        matches=lambda o: o.member is Member.ABSENT and o.pod is not Pod.NONE,
        step=Step.WAIT_POD,
        why="one registry per storage: the old pod must be gone first",
    ),
    Row(
        name="storage of a new member in use",
        when="the StatefulSet is absent, and somebody else's live pod can write to the claim",
        matches=lambda o: o.member is Member.ABSENT and o.storage_in_use,
        step=Step.STORAGE_IN_USE,
        why="two registries on one storage overwrite each other's TTL state",
    ),
    Row(
        name="create",
        when="the StatefulSet is absent",
        matches=lambda o: o.member is Member.ABSENT,
        step=Step.CREATE,
        why="nothing serves yet: prepare covers all that lies on the storage before the registry starts",
    ),
    Row(
        name="obstructing job",
        when="a Job runs while the pod is not ready or on another node",
        matches=lambda o: o.job is Job.OBSTRUCTING,
        step=Step.DELETE_JOB,
        why="the Job never holds the member up",
    ),
    Row(
        name="job no longer wanted",
        when="GC is wanted off or already on, and a Job is left (on trial its result is still needed by nobody)",
        matches=lambda o: not _switching_on(o) and o.job not in (Job.NONE, Job.TERMINATING),
        step=Step.DELETE_JOB,
        why="leaves nothing behind",
    ),
    Row(
        name="turn off, in turn",
        when="GC is wanted off, the template has it on, the pod serves, and it is not this member's turn",
        matches=lambda o: _off(o) and o.member is Member.ENABLED and _would_disturb(o),
        step=Step.WAIT_TURN,
        why="members roll one at a time, and only while the others serve",
    ),
    Row(
        name="turn off",
        when="GC is wanted off, and the template has it on",
        matches=lambda o: _off(o) and o.member is Member.ENABLED,
        step=Step.ROLL_OFF,
        why="prepare sets the TTL state aside, so that turning it on again finds everything missing",
    ),
    Row(
        name="take back",
        when="on trial, and prepare or the registry exited non-zero three times, or prepare runs ten times as long as the Job",
        matches=lambda o: o.on_trial and o.pod is Pod.FAILING,
        step=Step.REVERT,
        why="the cache serves without GC rather than not at all",
    ),
    Row(
        name="verified",
        when="on trial, and the pod is ready",
        matches=lambda o: o.on_trial and o.pod is Pod.READY,
        step=Step.VERIFY,
        why="later crashes have other causes and never revert",
    ),
    Row(
        name="other changes, in turn",
        when="image, series, template, or the ttl of a member with GC on differ, the pod serves, and it is not its turn",
        matches=lambda o: o.other_changes and _would_disturb(o),
        step=Step.WAIT_TURN,
        why="members roll one at a time, and only while the others serve; one that does not serve is never waited for",
    ),
    Row(
        name="other changes",
        when="image, series, template, or the ttl of a member with GC on differ",
        matches=lambda o: o.other_changes,
        step=Step.ROLL_OTHER,
        why="the switch itself must change nothing but GC; a bad image must be replaceable at any time",
    ),
    Row(
        name="starting",
        when="the pod is not ready",
        matches=lambda o: o.pod is not Pod.READY,
        step=Step.WAIT_POD,
        why="only a serving member migrates",
    ),
    Row(
        name="state lost, in use",
        when="the keeper finds the TTL state lost, and somebody else's live pod can write to the claim",
        matches=lambda o: _needs_repair(o) and o.storage_in_use,
        step=Step.STORAGE_IN_USE,
        why="the other writer is the likely cause, and would overwrite the next state too",
    ),
    Row(
        name="state lost again",
        when="the keeper finds the TTL state lost, and the member was restarted for it within the hour",
        matches=lambda o: _on(o) and o.repair is Repair.TOO_SOON,
        step=Step.REPAIR_IN_VAIN,
        why="whatever destroys it would do so again, and each restart interrupts pulls",
    ),
    Row(
        name="state lost, upstream",
        when="the keeper finds the TTL state lost, and did not reach the upstream lately",
        matches=lambda o: _needs_repair(o) and not o.upstream_fresh,
        step=Step.WAIT_UPSTREAM,
        why="a registry's start needs its upstream",
    ),
    Row(
        name="state lost, in turn",
        when="the keeper finds the TTL state lost, and it is not this member's turn",
        matches=lambda o: _needs_repair(o) and not o.turn,
        step=Step.WAIT_TURN,
        why="members roll one at a time, and only while the others serve",
    ),
    Row(
        name="state lost",
        when="the keeper finds the TTL state lost",
        matches=_needs_repair,
        step=Step.PREPARE_AGAIN,
        why="the state can only be rebuilt while no registry runs: prepare does it",
    ),
    Row(
        name="settled",
        when="the template has the wanted mode",
        matches=lambda o: not _switching_on(o),
        step=Step.REST,
        why="nothing to do",
    ),
    Row(
        name="given up",
        when="three switches of this generation were taken back",
        matches=lambda o: o.reverts is Reverts.EXHAUSTED,
        step=Step.GIVE_UP,
        why="a person is needed; a change of the spec tries again",
    ),
    Row(
        name="after a revert",
        when="the back-off after a revert is not over",
        matches=lambda o: o.reverts is Reverts.WAITING,
        step=Step.WAIT_RETRY,
        why="each attempt restarts the registry",
    ),
    Row(
        name="storage in use",
        when="somebody else's live pod can write to the claim",
        matches=lambda o: o.storage_in_use,
        step=Step.STORAGE_IN_USE,
        why="two registries on one storage overwrite each other's TTL state",
    ),
    Row(
        name="switch in turn",
        when="it is not this member's turn, and no Job of it is at work, leaving, or waits for its next try",
        matches=lambda o: (
            not o.turn and o.job not in (Job.RUNNING, Job.FAILED_WAITING, Job.TERMINATING)
        ),
        step=Step.WAIT_TURN,
        why="members migrate one at a time, and only while the others serve",
    ),
    Row(
        name="exclusive volume",
        when="the volume admits one pod only, and the upstream was reached lately",
        matches=lambda o: o.exclusive_volume and o.upstream_fresh,
        step=Step.ROLL_ON_ALONE,
        why="no Job can run beside the registry: prepare does it all",
    ),
    Row(
        name="exclusive volume, upstream",
        when="the volume admits one pod only",
        matches=lambda o: o.exclusive_volume,
        step=Step.WAIT_UPSTREAM,
        why="a registry's start needs its upstream",
    ),
    Row(
        name="job leaving",
        when="a Job is being deleted",
        matches=lambda o: o.job is Job.TERMINATING,
        step=Step.WAIT_JOB,
        why="its name may be needed again",
    ),
    Row(
        name="upstream",
        when="the keeper did not reach the upstream lately, and no Job is at work or waits for its next try",
        matches=lambda o: not o.upstream_fresh and o.job not in (Job.RUNNING, Job.FAILED_WAITING),
        step=Step.WAIT_UPSTREAM,
        why="a registry's start needs its upstream: rolling now would turn its outage into ours, and each Job made "
        "meanwhile would go stale and leave a file",
    ),
    Row(
        name="ask for a job",
        when="there is no Job",
        matches=lambda o: o.job is Job.NONE,
        step=Step.CREATE_JOB,
        why="the gate: it reads everything while the cache serves",
    ),
    Row(
        name="job at work",
        when="the Job runs",
        matches=lambda o: o.job is Job.RUNNING,
        step=Step.WAIT_JOB,
        why="nothing is stopped before it has succeeded",
    ),
    Row(
        name="job failed",
        when="the Job failed, and its back-off is not over",
        matches=lambda o: o.job is Job.FAILED_WAITING,
        step=Step.WAIT_RETRY,
        why="a failing Job costs nothing: the cache serves on",
    ),
    Row(
        name="job failed, again",
        when="the Job failed, and its back-off is over",
        matches=lambda o: o.job is Job.FAILED_DUE,
        step=Step.CREATE_JOB,
        why="the next attempt; the failed Job is deleted with it",
    ),
    Row(
        name="job stale",
        when="the Job succeeded too long ago, or for another request",
        matches=lambda o: o.job is Job.STALE,
        step=Step.DELETE_JOB,
        why="its times would be past when they are loaded",
    ),
    Row(
        name="turn on",
        when="the Job succeeded",
        matches=lambda o: o.job is Job.SUCCEEDED,
        step=Step.ROLL_ON,
        why="prepare installs the Job's state and adds what came since",
    ),
)


class NoRowError(AssertionError):
    """An observation that no row matches: a hole in the table."""


def matching_row(seen: Observation) -> Row:
    """The first row that matches; NoRowError if none does, which a test over all observations excludes."""
    for row in TABLE:
        if row.matches(seen):
            return row
    msg = f"no row for {seen}"
    raise NoRowError(msg)


def next_step(seen: Observation) -> Step:
    """The one thing to do now."""
    return matching_row(seen).step
