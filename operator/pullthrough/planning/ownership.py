"""Whose is an object that has a name of ours?

Ours to write: controlled by this very cache (by uid), or a claim that carries our labels and the used-by annotation.
Everything else is left alone: an object of an earlier cache of the same name is waited for, anybody else's is a conflict.
"""

from __future__ import annotations

from dataclasses import dataclass

from pullthrough.models import constants
from pullthrough.models.cache import PullThroughCache
from pullthrough.models.snapshot import Object, Ref, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why nothing may be written now."""

    reason: str
    """One of conditions.REASONS."""
    message: str
    stalls: bool
    """True: a person is needed; False: it passes by itself."""


def obstacle(cache: PullThroughCache, snapshot: Snapshot, wanted: list[Ref]) -> Obstacle | None:
    """The first object of `wanted` that is there and may not be written."""
    for ref in wanted:
        live = snapshot.get(ref.kind, ref.name)
        if live is None:
            continue
        found = (
            _of_claim(cache, live)
            if ref.kind == "PersistentVolumeClaim"
            else _of_child(cache, ref, live)
        )
        if found is not None:
            return found
    return None


def other_users(cache: PullThroughCache, claim: str, snapshot: Snapshot) -> tuple[str, ...]:
    """Names of live pods that can write to the claim and are not this cache's; empty where nobody looked."""
    return tuple(
        pod["metadata"]["name"]
        for pod in snapshot.users.get(claim, ())
        if not _is_our_pod(cache, pod, snapshot) and _may_write(pod, claim)
    )


def _is_our_pod(cache: PullThroughCache, pod: Object, snapshot: Snapshot) -> bool:
    """By its labels, or by a controller that is ours: labels can be stripped."""
    labels = pod["metadata"].get("labels") or {}
    is_labelled = labels.get(constants.LABEL_MANAGED_BY) == constants.FIELD_MANAGER
    if is_labelled and labels.get(constants.LABEL_CACHE) == cache.name:
        return True
    controller = _controller_uid(pod)
    owners = (*snapshot.of_kind("StatefulSet"), *snapshot.of_kind("Job"))
    return controller is not None and any(
        owner["metadata"]["uid"] == controller and is_controlled(cache, owner) for owner in owners
    )


def _may_write(pod: Object, claim: str) -> bool:
    """Not of a pod that ended, and not of one that only reads: a person may look at a volume."""
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    spec = pod["spec"]
    volumes = {
        volume["name"]
        for volume in spec.get("volumes") or []
        if (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim
        and not volume["persistentVolumeClaim"].get("readOnly")
    }
    containers = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    return any(
        mount["name"] in volumes and not mount.get("readOnly")
        for container in containers
        for mount in container.get("volumeMounts") or ()
    )


def is_controlled(cache: PullThroughCache, live: Object) -> bool:
    """Does the object name this very cache as its controller?"""
    return _controller_uid(live) == cache.uid


def _of_child(cache: PullThroughCache, ref: Ref, live: Object) -> Obstacle | None:
    what = f"{ref.kind} {cache.namespace}/{ref.name}"
    if is_controlled(cache, live):
        return _leaving(what) if live["metadata"].get("deletionTimestamp") else None
    if _is_of_earlier_cache(cache, live):
        return _leaving(what)
    return Obstacle(
        reason="NameConflict",
        message=f"{what} exists and does not belong to this cache: delete or rename it, or give the cache another name. "
        "It was not touched",
        stalls=True,
    )


def _of_claim(cache: PullThroughCache, live: Object) -> Obstacle | None:
    name = live["metadata"]["name"]
    what = f"PersistentVolumeClaim {cache.namespace}/{name}"
    if live["metadata"].get("deletionTimestamp"):
        return _leaving(what)
    annotations = live["metadata"].get("annotations") or {}
    labels = live["metadata"].get("labels") or {}
    if (
        labels.get(constants.LABEL_CACHE) != cache.name
        or constants.ANNOTATION_USED_BY not in annotations
    ):
        return Obstacle(
            reason="NameConflict",
            message=f"{what} exists and was not made for this cache: delete or rename it, or give the cache another "
            "name. It was not touched",
            stalls=True,
        )
    host = annotations.get(constants.ANNOTATION_UPSTREAM_HOST)
    if host != cache.spec.upstream.host:
        return Obstacle(
            reason="StorageBelongsToOtherUpstream",
            message=f"{what} holds images of {host}, and spec.upstream.host is {cache.spec.upstream.host}: served from "
            "it, one registry's images would be taken for another's. Delete the claim if its content may go, or give "
            "the cache another name",
            stalls=True,
        )
    controller = _controller_uid(live)
    if controller is not None and controller != cache.uid:
        return _leaving(what)
    return None


def _leaving(what: str) -> Obstacle:
    return Obstacle(
        reason="ChildTerminating", message=f"waiting for {what} to be deleted", stalls=False
    )


def _is_of_earlier_cache(cache: PullThroughCache, live: Object) -> bool:
    """Owned by a cache of this name and another uid: Kubernetes collects it, its owner is gone."""
    return any(
        owner.get("kind") == constants.KIND
        and owner.get("name") == cache.name
        and owner.get("uid") != cache.uid
        for owner in live["metadata"].get("ownerReferences") or []
    )


def _controller_uid(live: Object) -> str | None:
    for owner in live["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner.get("uid"))
    return None
