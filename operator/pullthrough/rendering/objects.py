"""ConfigMap, Services and claim of a cache."""

from __future__ import annotations

from typing import Any

from pullthrough.models import constants
from pullthrough.models.cache import PullThroughCache, Retention
from pullthrough.rendering import config, labels, names
from pullthrough.rendering.roll import Roll


def config_map(cache: PullThroughCache, roll: Roll) -> dict[str, Any]:
    """The registry's configuration, immutable and named by its content."""
    content = config.render(cache, roll)
    name = names.config_map(cache.name, content)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": labels.metadata(cache, name, constants.COMPONENT_REGISTRY),
        "immutable": True,
        "data": {constants.CONFIG_FILE: content},
    }


def cache_service(cache: PullThroughCache) -> dict[str, Any]:
    """The cache's endpoint: all members that are ready."""
    return _service(cache, names.service(cache.name), None)


def member_service(cache: PullThroughCache, member: int) -> dict[str, Any]:
    """One member's own endpoint."""
    return _service(cache, names.member(cache.name, member), member)


def disruption_budget(cache: PullThroughCache) -> dict[str, Any]:
    """All members but one stay up through drains. Counted in pods that must stay: of several StatefulSets of one pod
    each, `maxUnavailable` is worked out from their scales together, and a percentage would admit a total outage."""
    name = names.service(cache.name)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": labels.metadata(cache, name, constants.COMPONENT_REGISTRY),
        "spec": {
            "minAvailable": cache.spec.replicas - 1,
            "selector": {"matchLabels": labels.registry_selector(cache)},
        },
    }


def _service(cache: PullThroughCache, name: str, member: int | None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": labels.metadata(cache, name, constants.COMPONENT_REGISTRY, member),
        "spec": {
            "type": "ClusterIP",
            "selector": labels.registry_selector(cache, member),
            "ports": [
                {
                    "name": "registry",
                    "port": constants.REGISTRY_PORT,
                    "protocol": "TCP",
                    "targetPort": "registry",
                }
            ],
        },
    }


def claim(cache: PullThroughCache, member: int, size: str) -> dict[str, Any]:
    """A member's storage. It belongs to the cache only under whenDeleted: Delete; else it stays when the cache goes.

    `size` is the spec's for a new claim and the live one for an existing: a claim cannot shrink.
    """
    volume = cache.spec.storage.volume
    metadata = labels.metadata(
        cache, names.member(cache.name, member), constants.COMPONENT_REGISTRY, member
    )
    if cache.spec.storage.retention_policy.when_deleted is Retention.RETAIN:
        del metadata["ownerReferences"]
    metadata["annotations"] = {
        constants.ANNOTATION_UPSTREAM_HOST: cache.spec.upstream.host,
        constants.ANNOTATION_USED_BY: used_by(cache, member),
    }
    spec: dict[str, Any] = {
        "accessModes": [volume.access_mode.value],
        "resources": {"requests": {"storage": size}},
    }
    if volume.storage_class_name is not None:
        spec["storageClassName"] = volume.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
    }


def used_by(cache: PullThroughCache, member: int) -> str:
    """The value of the claim's used-by annotation: this very cache and member."""
    return f"{cache.uid}/{member}"
