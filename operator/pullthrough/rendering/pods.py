"""What every pod of ours has in common: the Pod Security Standard *restricted*, a read-only root, no token."""

from __future__ import annotations

from typing import Any

from pullthrough.models import constants
from pullthrough.models.cache import PullThroughCache

STORAGE_MOUNT = {"name": "storage", "mountPath": constants.STORAGE_PATH}
TEMPORARY_MOUNT = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 -- an emptyDir of the pod's own
TERMINATION_LOG = "/dev/termination-log"

NO_MESH = {
    "sidecar.istio.io/inject": "false",
    "linkerd.io/inject": "disabled",
}
"""A mesh's sidecar would keep a Job from ever ending."""


def security_context() -> dict[str, Any]:
    """Of the pod. OnRootMismatch: a million files are not to be chowned at each start."""
    return {
        "runAsNonRoot": True,
        "runAsUser": constants.RUN_AS,
        "runAsGroup": constants.RUN_AS,
        "fsGroup": constants.RUN_AS,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security_context() -> dict[str, Any]:
    """Of each container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def base(cache: PullThroughCache) -> dict[str, Any]:
    """The pod spec that registry and migration pods share.

    enableServiceLinks is off: a Service named registry-storage would inject REGISTRY_STORAGE_PORT, and the registry
    reads REGISTRY_* as configuration.
    """
    template = cache.spec.pod_template
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security_context(),
    }
    if template.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": s.name} for s in template.image_pull_secrets]
    if template.service_account_name is not None:
        spec["serviceAccountName"] = template.service_account_name
    if template.tolerations:
        spec["tolerations"] = [
            t.model_dump(by_alias=True, exclude_none=True) for t in template.tolerations
        ]
    return spec
