"""What a migration Job's object says: how it went, and when to try again."""

from __future__ import annotations

from datetime import datetime, timedelta

from pullthrough import durations
from pullthrough.gc.observation import Job
from pullthrough.models import constants
from pullthrough.models.conditions import parse_time
from pullthrough.models.snapshot import Object

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=5)
LONGEST_FRESHNESS = timedelta(hours=1)
"""A Job's result older than this, or than the ttl, counts as not run."""


def attempt(job: Object) -> int:
    """Which attempt this is; 1 for the first."""
    return int((job["metadata"].get("annotations") or {}).get(constants.ANNOTATION_ATTEMPT, "1"))


def request(job: Object) -> str:
    """Hash of what the Job was made for."""
    return str((job["metadata"].get("annotations") or {}).get(constants.ANNOTATION_REQUEST, ""))


def node(job: Object) -> str:
    """The node it was made for; empty if it has no affinity."""
    affinity = job["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in required.get("nodeSelectorTerms", []):
        for field in term.get("matchFields", []):
            return str(field["values"][0])
    return ""


def ended(job: Object) -> tuple[str, datetime] | None:
    """("Complete" or "Failed", when); None while it runs."""
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], parse_time(condition["lastTransitionTime"])
    return None


def seconds(job: Object) -> int:
    """How long a Job that ended took, in whole seconds, at least one."""
    status = job.get("status", {})
    if not status.get("startTime") or not status.get("completionTime"):
        return 1
    took = parse_time(status["completionTime"]) - parse_time(status["startTime"])
    return max(1, int(took.total_seconds()))


def failure(job: Object | None) -> str:
    """Kubernetes' own words about a failed Job, for example that its deadline has passed; empty if there are none."""
    for condition in (job or {}).get("status", {}).get("conditions") or []:
        if condition["type"] == "Failed" and condition["status"] == "True":
            parts = (condition.get("reason"), condition.get("message"))
            return ": ".join(str(part) for part in parts if part)
    return ""


def retry_at(job: Object, failed: datetime) -> datetime:
    """When the next attempt is due after this one failed."""
    wait = min(LONGEST_BACKOFF, FIRST_BACKOFF * (1 << min(attempt(job) - 1, 10)))
    return failed + wait


def state(
    job: Object | None, *, asked: str, ttl: str, member_node: str | None, now: datetime
) -> Job:
    """The Job classified; `member_node` is None while the member's pod is not ready."""
    if job is None:
        return Job.NONE
    if job["metadata"].get("deletionTimestamp"):
        return Job.TERMINATING
    if request(job) != asked:
        return Job.STALE
    end = ended(job)
    if end is None:
        return (
            Job.RUNNING if member_node is not None and node(job) == member_node else Job.OBSTRUCTING
        )
    how, when = end
    if how == "Failed":
        return Job.FAILED_DUE if now >= retry_at(job, when) else Job.FAILED_WAITING
    fresh_for = min(LONGEST_FRESHNESS, durations.parse_go(ttl))
    return Job.SUCCEEDED if now - when <= fresh_for else Job.STALE
