"""Resources for tests, with a default for everything: a test names only what it is about."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pullthrough.models import constants
from pullthrough.models.cache import PullThroughCache
from pullthrough.models.settings import Settings

NAME = "c"
NAMESPACE = "n"

SETTINGS = Settings(
    image="example.org/pullthrough:1",
    registry_images={"v3": "example.org/registry:3.1.2", "v2": "example.org/registry:2.8.2"},
)

SPEC: Mapping[str, Any] = {
    "upstream": {"host": "docker.io"},
    "gc": {"mode": "Disabled", "ttl": "168h"},
    "storage": {"volume": {"size": "10Gi"}},
}


def merged(base: Any, changes: Any) -> Any:
    """A JSON merge patch (RFC 7396): what `kubectl patch --type=merge` does."""
    if not isinstance(changes, Mapping) or not isinstance(base, Mapping):
        return copy.deepcopy(changes)
    result = {key: copy.deepcopy(value) for key, value in base.items()}
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key, {}), value)
    return result


def cache_raw(uid: str = "uid-cache", generation: int = 1, **spec: Any) -> dict[str, Any]:
    """A PullThroughCache as the API server gives it; `spec` is merged into one that keeps everything."""
    return {
        "apiVersion": constants.API_VERSION,
        "kind": constants.KIND,
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": uid,
            "generation": generation,
            "resourceVersion": "1",
            "labels": {"app.kubernetes.io/instance": "somebody's-gitops"},
            "annotations": {"argocd.argoproj.io/tracking-id": "apps:ptc"},
        },
        "spec": merged(SPEC, spec),
        "status": {"observedGeneration": -1},
    }


def cache(**spec: Any) -> PullThroughCache:
    """The same, parsed."""
    return PullThroughCache.parse(cache_raw(**spec))
