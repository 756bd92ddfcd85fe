"""The migration Job: reads the storage beside the serving registry and writes the finished TTL state.

It must never hold the member up: it runs on the member's node, has a deadline, is not retried by Kubernetes (the
operator decides), and its only output is a file under its own uid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pullthrough import durations
from pullthrough.models import constants, quantities
from pullthrough.models.cache import PullThroughCache
from pullthrough.models.settings import Settings
from pullthrough.rendering import labels, names, pods, statefulset

UID_LABEL = "batch.kubernetes.io/controller-uid"
"""Put on a Job's pods by Kubernetes 1.27 and later."""


def request(cache: PullThroughCache, member: int, generation: int, settings: Settings) -> str:
    """Hash of what a Job is made for: another request makes an earlier Job's result worthless."""
    asked = [
        cache.uid,
        names.member(cache.name, member),
        cache.ttl,
        cache.spec.gc.spread,
        cache.spec.registry.series.value,
        statefulset.registry_image(cache, settings),
        generation,
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def migration_job(
    cache: PullThroughCache,
    member: int,
    *,
    asked: str,
    attempt: int,
    node: str,
    image: str,
    settings: Settings,
) -> dict[str, Any]:
    """One attempt on the member's node; `asked` is `request`'s hash, `image` the keeper's."""
    metadata = labels.metadata(
        cache,
        names.migration_job(cache.name, member, asked, attempt),
        constants.COMPONENT_MIGRATION,
        member,
    )
    metadata["annotations"] = {
        constants.ANNOTATION_ATTEMPT: str(attempt),
        constants.ANNOTATION_REQUEST: asked,
    }
    pod_labels = labels.of(cache, constants.COMPONENT_MIGRATION, member)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(
                durations.parse_go(settings.migration_deadline).total_seconds()
            ),
            "template": {
                "metadata": {
                    "labels": {**pod_labels, "sidecar.istio.io/inject": "false"},
                    "annotations": dict(pods.NO_MESH),
                },
                "spec": _pod_spec(cache, member, node, image, settings),
            },
        },
    }


def pod_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The pod that the Job controller would make, to be tried with a dry run: a quota or a policy refuses pods, not Jobs."""
    metadata, template = job["metadata"], job["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **template["metadata"],
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
        },
        "spec": template["spec"],
    }


def _pod_spec(
    cache: PullThroughCache, member: int, node: str, image: str, settings: Settings
) -> dict[str, Any]:
    spec = pods.base(cache)
    spec["restartPolicy"] = "Never"
    spec["affinity"] = _on_node(node)
    if settings.migration_priority_class:
        spec["priorityClassName"] = settings.migration_priority_class
    spec["containers"] = [_container(cache, image, settings)]
    spec["volumes"] = [
        {
            "name": "storage",
            "persistentVolumeClaim": {"claimName": names.member(cache.name, member)},
        },
        {"name": "tmp", "emptyDir": {}},
    ]
    return spec


def _container(cache: PullThroughCache, image: str, settings: Settings) -> dict[str, Any]:
    args = [
        "migrate",
        f"--storage={constants.STORAGE_PATH}",
        f"--series={cache.spec.registry.series.value}",
        f"--ttl={cache.ttl}",
        "--id=$(JOB_UID)",
        f"--upstream-host={cache.spec.upstream.host}",
        f"--termination-message={pods.TERMINATION_LOG}",
    ]
    if cache.spec.gc.spread is not None:
        args.append(f"--spread={cache.spec.gc.spread}")
    limit = cache.spec.pod_template.resources.limits.get("memory")
    if limit is not None:
        args.append(f"--memory-limit={int(quantities.parse(limit))}")
    return {
        "name": constants.CONTAINER_MIGRATE,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "env": [
            {
                "name": "JOB_UID",
                "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{UID_LABEL}']"}},
            }
        ],
        "securityContext": pods.container_security_context(),
        "terminationMessagePath": pods.TERMINATION_LOG,
        "volumeMounts": [pods.STORAGE_MOUNT, pods.TEMPORARY_MOUNT],
    }


def _on_node(node: str) -> dict[str, Any]:
    """Where the member's pod is: elsewhere a ReadWriteOnce volume could not be attached."""
    term = {
        "matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}],
    }
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}
        }
    }
