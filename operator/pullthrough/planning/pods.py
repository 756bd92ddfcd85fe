"""What a pod's status says: ready, failing, and why not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pullthrough.models import constants
from pullthrough.models.conditions import parse_time
from pullthrough.models.snapshot import Object

FAILURES_BEFORE_REVERT = 3
"""Exits with an error under one template that take a switch back (design: never for Pending or image pulls)."""

PULL_PROBLEMS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)

NEEDS_PERSON = frozenset(
    {
        "StorageBelongsToOtherUpstream",
        "StorageUnmarked",
        "StorageMarkerMalformed",
        "StorageMarkerNewer",
    }
)
"""Reasons of `prepare` that no further try changes; the others are PrepareFailed to the outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a pod is not ready."""

    reason: str
    """One of conditions.REASONS."""
    message: str
    needs_person: bool = False


def annotations_of(pod: Object) -> Mapping[str, str]:
    """The pod's annotations; empty if it has none."""
    found: Mapping[str, str] = pod["metadata"].get("annotations") or {}
    return found


def names_claim(pod: Object, claim: str) -> bool:
    """Whether one of its volumes is the claim."""
    return any(
        (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim
        for volume in pod["spec"].get("volumes") or ()
    )


def is_registry(pod: Object) -> bool:
    """Whether it is a member's, and not a migration's."""
    labels = pod["metadata"].get("labels") or {}
    return bool(labels.get(constants.LABEL_COMPONENT) == constants.COMPONENT_REGISTRY)


def is_ready(pod: Object | None) -> bool:
    """Serves, and is not on its way out."""
    if pod is None or pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def has_failed(pod: Object) -> bool:
    """prepare or the registry exited with an error three times or more. Restarts without an error do not count."""
    return any(
        status.get("restartCount", 0) >= FAILURES_BEFORE_REVERT and _last_exit(status)
        for status in _statuses(pod)
        if status["name"] in (constants.CONTAINER_PREPARE, constants.CONTAINER_REGISTRY)
    )


def running_since(pod: Object, container: str) -> datetime | None:
    """Since when the container has been running; None if it does not run."""
    for status in _statuses(pod):
        started = (status.get("state", {}).get("running") or {}).get("startedAt")
        if status["name"] == container and started:
            return parse_time(started)
    return None


def problem(pod: Object) -> Problem | None:
    """The most telling reason why the pod does not serve; None if it is simply starting."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return Problem(reason="MemberUnschedulable", message=str(scheduled.get("message", "")))
    for status in _statuses(pod):
        found = _container_problem(status)
        if found is not None:
            return found
    return None


def termination_message(pod: Object, container: str) -> dict[str, Any]:
    """The JSON that a program of ours left when it last ended; empty if there is none."""
    for status in _statuses(pod):
        if status["name"] != container:
            continue
        for end in _ends(status):
            if end.get("message"):
                return _parsed(end["message"])
    return {}


def _container_problem(status: Mapping[str, Any]) -> Problem | None:
    name = status["name"]
    waiting = status.get("state", {}).get("waiting", {})
    if waiting.get("reason") in PULL_PROBLEMS:
        detail = waiting.get("message") or waiting["reason"]
        return Problem(
            reason="ImagePullFailed",
            message=f"the image {status.get('image')} of container {name} cannot be pulled: {detail}",
        )
    if waiting.get("reason") == "CreateContainerConfigError":
        return Problem(
            reason="MemberCrashing", message=f"container {name}: {waiting.get('message')}"
        )
    code = _last_exit(status)
    if not code or status.get("ready"):
        return None
    if name == constants.CONTAINER_PREPARE:
        return _prepare_problem(status, code)
    if name == constants.CONTAINER_REGISTRY:
        restarts = status.get("restartCount", 0)
        return Problem(
            reason="MemberCrashing",
            message=f"container {name} exited with {code}, {restarts} restarts: see its log",
        )
    return None


def _prepare_problem(status: Mapping[str, Any], code: int) -> Problem:
    for end in _ends(status):
        said = _parsed(end.get("message") or "")
        if said.get("reason"):
            needs_person = said["reason"] in NEEDS_PERSON
            return Problem(
                reason=said["reason"] if needs_person else "PrepareFailed",
                message=str(said.get("message", said["reason"])),
                needs_person=needs_person,
            )
    return Problem(reason="PrepareFailed", message=f"prepare exited with {code}: see its log")


def _last_exit(status: Mapping[str, Any]) -> int:
    """The exit code of the container's last end; 0 if it never ended."""
    for end in _ends(status):
        if end.get("exitCode") is not None:
            return int(end["exitCode"])
    return 0


def _ends(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """How the container ended: lately, and the time before; empty where it did not."""
    for state in (status.get("state", {}), status.get("lastState", {})):
        yield state.get("terminated", {})


def _statuses(pod: Object) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _condition(pod: Object, kind: str) -> Mapping[str, Any]:
    conditions = pod.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def _parsed(message: str) -> dict[str, Any]:
    try:
        said = json.loads(message)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
