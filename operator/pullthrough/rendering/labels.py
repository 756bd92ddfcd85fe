"""Labels and owner references of children. The cache's own labels are never copied: GitOps tools would prune by them."""

from __future__ import annotations

from typing import Any

from pullthrough.models import constants
from pullthrough.models.cache import PullThroughCache


def of(cache: PullThroughCache, component: str, member: int | None = None) -> dict[str, str]:
    """What every child, pod and claim of the cache carries."""
    labels = {
        constants.LABEL_MANAGED_BY: constants.FIELD_MANAGER,
        constants.LABEL_NAME: "pull-through-cache",
        constants.LABEL_INSTANCE: f"ptc-{cache.name}",
        constants.LABEL_COMPONENT: component,
        constants.LABEL_CACHE: cache.name,
    }
    if member is not None:
        labels[constants.LABEL_MEMBER] = str(member)
    return labels


def registry_selector(cache: PullThroughCache, member: int | None = None) -> dict[str, str]:
    """Selects registry pods alone: a migration's pods differ in the component. Immutable in a StatefulSet."""
    selector = {
        constants.LABEL_CACHE: cache.name,
        constants.LABEL_COMPONENT: constants.COMPONENT_REGISTRY,
    }
    if member is not None:
        selector[constants.LABEL_MEMBER] = str(member)
    return selector


def owner(cache: PullThroughCache) -> list[dict[str, Any]]:
    """The controller reference by which Kubernetes collects a child with its cache."""
    return [
        {
            "apiVersion": constants.API_VERSION,
            "kind": constants.KIND,
            "name": cache.name,
            "uid": cache.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def metadata(
    cache: PullThroughCache, name: str, component: str, member: int | None = None
) -> dict[str, Any]:
    """metadata of a child that belongs to the cache."""
    return {
        "name": name,
        "namespace": cache.namespace,
        "labels": of(cache, component, member),
        "ownerReferences": owner(cache),
    }
