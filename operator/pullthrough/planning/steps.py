"""What each step of the table does to objects: the actions, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

from pullthrough import durations
from pullthrough.gc.table import Step
from pullthrough.models import constants
from pullthrough.models.cache import GcMode, PullThroughCache
from pullthrough.models.conditions import format_time
from pullthrough.models.plan import Action, Apply, Create, Delete, DryRun
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import Object, Ref
from pullthrough.planning import differences, jobs, observe
from pullthrough.planning.observe import MemberFacts
from pullthrough.rendering import job as job_rendering
from pullthrough.rendering.roll import Roll

LOOK_AGAIN = 30.0
"""Seconds: a net under a lost event, while something is under way."""
SOON = 3.0
"""Seconds between two questions to a keeper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step means for the objects of one member."""

    roll: Roll
    """How the StatefulSet should run after the actions."""
    before: tuple[Action, ...] = ()
    """Actions beside the StatefulSet's own (Jobs)."""
    creates: bool = False
    """The StatefulSet is to be made; without it an absent one stays absent."""
    rolls: bool = False
    """The StatefulSet's template changes by decision: it is written only on what was seen (resourceVersion)."""
    requeue_after: float | None = None


def outcome(  # noqa: PLR0912 -- one case a step, nothing else
    cache: PullThroughCache, facts: MemberFacts, step: Step, now: datetime, settings: Settings
) -> Outcome:
    """The step translated."""
    roll = facts.roll
    match step:
        case Step.CREATE:
            return Outcome(roll=roll, creates=True)
        case Step.REST:
            return Outcome(roll=_proven(facts))
        case Step.GIVE_UP:
            return Outcome(roll=roll)
        case Step.PREPARE_AGAIN:
            again = observe.replaced(roll, prepared_again=format_time(now))
            return Outcome(roll=again, rolls=True)
        case Step.STORAGE_IN_USE | Step.REPAIR_IN_VAIN:
            return Outcome(roll=roll, requeue_after=LOOK_AGAIN)
        case Step.VERIFY:
            return Outcome(roll=observe.replaced(roll, verified=roll.migration))
        case Step.ROLL_OTHER:
            return Outcome(roll=_other(facts, now), rolls=True)
        case Step.ROLL_OFF:
            return Outcome(roll=_off(roll, settings), rolls=True)
        case Step.REVERT:
            taken_back = observe.revert_stamp(cache, roll, now)
            return Outcome(
                roll=observe.replaced(_off(roll, settings), reverted=taken_back), rolls=True
            )
        case Step.ROLL_ON:
            migration = str(facts.job["metadata"]["uid"]) if facts.job is not None else None
            return Outcome(roll=_on(cache, facts, migration, now, settings), rolls=True)
        case Step.ROLL_ON_ALONE:
            return Outcome(roll=_on(cache, facts, None, now, settings), rolls=True)
        case Step.CREATE_JOB:
            return Outcome(
                roll=roll, before=_next_job(cache, facts, settings), requeue_after=LOOK_AGAIN
            )
        case Step.DELETE_JOB:
            return Outcome(
                roll=roll,
                before=_without_job(facts, "its result is not needed"),
                requeue_after=LOOK_AGAIN,
            )
        case Step.WAIT_RETRY:
            return Outcome(roll=roll, requeue_after=_until_retry(cache, facts, now))
        case Step.WAIT_UPSTREAM:
            return Outcome(roll=roll, requeue_after=SOON)
        case Step.WAIT_POD | Step.WAIT_JOB | Step.WAIT_TURN:
            return Outcome(roll=roll, requeue_after=LOOK_AGAIN)
        case _:
            assert_never(step)


def write(
    live: Object | None, desired: Mapping[str, Any], *, on_what_was_seen: bool = False
) -> Action | None:
    """Create, apply or nothing, as the live object has it."""
    marked = differences.stamped(desired)
    if live is None:
        return Create(desired=marked, reason="absent")
    difference = differences.first_difference(live, marked)
    if difference is None:
        return None
    unstamped = differences.first_difference(live, desired)
    return Apply(
        desired=marked,
        uid=live["metadata"]["uid"],
        reason=unstamped or difference,
        resource_version=live["metadata"]["resourceVersion"] if on_what_was_seen else "",
    )


def _other(facts: MemberFacts, now: datetime) -> Roll:
    """The roll with its waiting changes. Another ttl moves what was cached before the switch with it: `prepare` gives
    old entries at most now + ttl."""
    changed = facts.roll_with_changes or facts.roll
    if facts.roll.collected_by is None or changed.ttl == facts.roll.ttl:
        return changed
    by = format_time(now + durations.parse_go(changed.ttl))
    return observe.replaced(changed, collected_by=by)


def _proven(facts: MemberFacts) -> Roll:
    """The roll with what its canary proved: remembered, for the keeper can be silent later."""
    if facts.roll.mode is not GcMode.ENABLED or facts.stateful_set is None:
        return facts.roll
    template = observe.template_annotations(facts.stateful_set).get(constants.ANNOTATION_TEMPLATE)
    if facts.roll.proven == template or not observe.is_proven(facts):
        return facts.roll
    return observe.replaced(facts.roll, proven=template)


def _off(roll: Roll, settings: Settings) -> Roll:
    return observe.replaced(
        roll,
        mode=GcMode.DISABLED,
        migration=None,
        collected_by=None,
        verified=None,
        migration_seconds=None,
        prepared_again=None,
        proven=None,
        keeper_image=settings.image,
    )


def _on(
    cache: PullThroughCache,
    facts: MemberFacts,
    migration: str | None,
    now: datetime,
    settings: Settings,
) -> Roll:
    return observe.replaced(
        facts.roll,
        mode=GcMode.ENABLED,
        ttl=cache.ttl,
        migration=migration,
        collected_by=observe.collected_by(facts, cache.ttl, now),
        verified=None,
        proven=None,
        migration_seconds=str(jobs.seconds(facts.job)) if facts.job is not None else None,
        keeper_image=settings.image,
    )


def _next_job(
    cache: PullThroughCache, facts: MemberFacts, settings: Settings
) -> tuple[Action, ...]:
    """The failed attempt goes, the next one comes: its counter lives in the object."""
    attempt = 1
    deletions: tuple[Action, ...] = ()
    if facts.job is not None:
        attempt = jobs.attempt(facts.job) + 1
        deletions = _without_job(facts, "the next attempt takes its place")
    node = str(facts.pod["spec"].get("nodeName", "")) if facts.pod is not None else ""
    desired = job_rendering.migration_job(
        cache,
        facts.ordinal,
        asked=facts.asked,
        attempt=attempt,
        node=node,
        image=settings.image,
        settings=settings,
    )
    # A quota or a policy refuses the Job's pod, not the Job, which would then stand there until its deadline.
    tried = DryRun(desired=job_rendering.pod_of(desired), reason="would the Job's pod be admitted?")
    return (tried, Create(desired=desired, reason=f"attempt {attempt}"), *deletions)


def _without_job(facts: MemberFacts, reason: str) -> tuple[Action, ...]:
    if facts.job is None or facts.job["metadata"].get("deletionTimestamp"):
        return ()
    metadata = facts.job["metadata"]
    return (Delete(ref=Ref("Job", metadata["name"]), uid=metadata["uid"], reason=reason),)


def _until_retry(cache: PullThroughCache, facts: MemberFacts, now: datetime) -> float:
    times = [observe.retry_after_revert(cache, facts.roll)]
    if facts.job is not None:
        end = jobs.ended(facts.job)
        if end is not None:
            times.append(jobs.retry_at(facts.job, end[1]))
    waits = [(due - now).total_seconds() for due in times if due is not None and due > now]
    return min(waits, default=1.0) + 0.1


__all__ = ["Outcome", "outcome", "write"]
