"""A member: one registry pod on its own claim, with `prepare` before it and the keeper beside it.

The claim is named as a plain volume (claim templates cannot grow), `Parallel` so that a corrected image replaces a bad
one that never became ready.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pullthrough.models import constants
from pullthrough.models.cache import GcMode, PullThroughCache
from pullthrough.models.settings import Settings
from pullthrough.rendering import config, labels, names, pods
from pullthrough.rendering.roll import Roll

GRACE_SECONDS = 60
"""preStop's sleep + the registry's drain of 20 s + the keeper's end, with room."""
PRESTOP_SLEEP_SECONDS = 5
"""Long enough for the Service to forget the pod while the registry still answers."""


def stateful_set(
    cache: PullThroughCache, member: int, roll: Roll, settings: Settings
) -> dict[str, Any]:
    """The member as it should run now."""
    name = names.member(cache.name, member)
    metadata = labels.metadata(cache, name, constants.COMPONENT_REGISTRY, member)
    metadata["annotations"] = {
        key: value
        for key, value in (
            (constants.ANNOTATION_COLLECTED_BY, roll.collected_by),
            (constants.ANNOTATION_VERIFIED, roll.verified),
            (constants.ANNOTATION_PROVEN, roll.proven),
            (constants.ANNOTATION_MIGRATION_SECONDS, roll.migration_seconds),
            (constants.ANNOTATION_REVERTED, roll.reverted),
        )
        if value is not None
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": labels.registry_selector(cache, member)},
            "template": pod_template(cache, member, roll, settings),
        },
    }


def pod_template(
    cache: PullThroughCache, member: int, roll: Roll, settings: Settings
) -> dict[str, Any]:
    """The pod template, stamped with the hash of everything it was made from."""
    draft = _template(cache, member, roll, settings, "")
    made_from = json.dumps(draft, sort_keys=True)
    return _template(
        cache, member, roll, settings, hashlib.sha256(made_from.encode()).hexdigest()[:16]
    )


def asked(cache: PullThroughCache, roll: Roll) -> str:
    """Hash of what the spec and the migration ask of the template, and of nothing that a release of the operator brings:
    defaults are left out, so that a new field or another default image asks for nothing."""
    spec = cache.spec.model_dump(mode="json", exclude_defaults=True)
    wanted = {name: spec.get(name) for name in ("upstream", "registry", "pod_template")}
    parts: list[Any] = [wanted, cache.spec.gc.spread, roll.mode.value, roll.ttl, roll.migration]
    parts += [roll.prepared_again, roll.adopts_unmarked]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def registry_image(cache: PullThroughCache, settings: Settings) -> str:
    """The spec's image, or the default of its series."""
    registry = cache.spec.registry
    return registry.image or settings.registry_images[registry.series.value]


def _template(
    cache: PullThroughCache, member: int, roll: Roll, settings: Settings, template_hash: str
) -> dict[str, Any]:
    extra = cache.spec.pod_template
    annotations = {
        **extra.annotations,
        constants.ANNOTATION_TEMPLATE: template_hash,
        constants.ANNOTATION_ASKED: asked(cache, roll),
        constants.ANNOTATION_GC_MODE: roll.mode.value,
        constants.ANNOTATION_GC_TTL: roll.ttl,
    }
    if roll.migration is not None:
        annotations[constants.ANNOTATION_MIGRATION] = roll.migration
    if roll.adopts_unmarked:
        annotations[constants.ANNOTATION_ADOPT_UNMARKED] = "true"
    if roll.prepared_again is not None:
        annotations[constants.ANNOTATION_PREPARED_AGAIN] = roll.prepared_again
    return {
        "metadata": {
            "labels": {**extra.labels, **labels.of(cache, constants.COMPONENT_REGISTRY, member)},
            "annotations": annotations,
        },
        "spec": _pod_spec(cache, member, roll, settings, template_hash),
    }


def _pod_spec(
    cache: PullThroughCache, member: int, roll: Roll, settings: Settings, template_hash: str
) -> dict[str, Any]:
    extra = cache.spec.pod_template
    spec = pods.base(cache)
    spec["terminationGracePeriodSeconds"] = GRACE_SECONDS
    if extra.node_selector:
        spec["nodeSelector"] = dict(extra.node_selector)
    if extra.affinity:
        spec["affinity"] = dict(extra.affinity)
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels.registry_selector(cache)},
        }
    ]
    if extra.priority_class_name is not None:
        spec["priorityClassName"] = extra.priority_class_name
    spec["initContainers"] = [
        _prepare(cache, roll, settings, template_hash),
        _keeper(cache, roll, settings, template_hash),
    ]
    spec["containers"] = [_registry(cache, settings)]
    content = config.render(cache, roll)
    spec["volumes"] = [
        {
            "name": "storage",
            "persistentVolumeClaim": {"claimName": names.member(cache.name, member)},
        },
        {"name": "config", "configMap": {"name": names.config_map(cache.name, content)}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return spec


def _prepare(
    cache: PullThroughCache, roll: Roll, settings: Settings, template_hash: str
) -> dict[str, Any]:
    args = [
        "prepare",
        f"--storage={constants.STORAGE_PATH}",
        f"--series={cache.spec.registry.series.value}",
        f"--gc={roll.mode.value}",
        f"--ttl={roll.ttl}",
        f"--upstream-host={cache.spec.upstream.host}",
        f"--template={template_hash}",
        f"--termination-message={pods.TERMINATION_LOG}",
    ]
    if cache.spec.gc.spread is not None:
        args.append(f"--spread={cache.spec.gc.spread}")
    if roll.adopts_unmarked:
        args.append("--adopt-unmarked")
    if roll.migration is not None:
        args.append(f"--migration={roll.migration}")
    return {
        "name": constants.CONTAINER_PREPARE,
        "image": roll.keeper_image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": args,
        "securityContext": pods.container_security_context(),
        "terminationMessagePath": pods.TERMINATION_LOG,
        "volumeMounts": [pods.STORAGE_MOUNT, pods.TEMPORARY_MOUNT],
    }


def _keeper(
    cache: PullThroughCache, roll: Roll, settings: Settings, template_hash: str
) -> dict[str, Any]:
    keeper = settings.keeper
    ttl = f"--ttl={roll.ttl}" if roll.mode is GcMode.ENABLED else "--no-ttl"
    return {
        "name": constants.CONTAINER_KEEPER,
        "image": roll.keeper_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "args": [
            "keep",
            f"--storage={constants.STORAGE_PATH}",
            f"--series={cache.spec.registry.series.value}",
            ttl,
            f"--upstream-url={cache.upstream_url}",
            f"--registry=127.0.0.1:{constants.REGISTRY_PORT}",
            f"--listen=[::]:{constants.KEEPER_PORT}",
            f"--template={template_hash}",
            f"--sweep-interval={keeper.sweep_interval}",
            f"--minimum-age={keeper.minimum_age}",
            f"--upload-age={keeper.upload_age}",
            f"--data-delay={keeper.data_delay}",
            f"--state-interval={keeper.state_interval}",
            f"--backstop-margin={keeper.backstop_margin}",
            f"--probe-interval={keeper.probe_interval}",
            f"--rate={keeper.rate}",
        ],
        "ports": [{"name": "keeper", "containerPort": constants.KEEPER_PORT, "protocol": "TCP"}],
        "securityContext": pods.container_security_context(),
        "volumeMounts": [pods.STORAGE_MOUNT, pods.TEMPORARY_MOUNT],
    }


def _registry(cache: PullThroughCache, settings: Settings) -> dict[str, Any]:
    resources = cache.spec.pod_template.resources
    container: dict[str, Any] = {
        "name": constants.CONTAINER_REGISTRY,
        "image": registry_image(cache, settings),
        "imagePullPolicy": "IfNotPresent",
        "args": ["serve", f"{constants.CONFIG_DIRECTORY}/{constants.CONFIG_FILE}"],
        # Without it 3.x sends its traces to localhost:4318 and logs a failure for each.
        "env": [{"name": "OTEL_TRACES_EXPORTER", "value": "none"}],
        "ports": [
            {"name": "registry", "containerPort": constants.REGISTRY_PORT, "protocol": "TCP"}
        ],
        "readinessProbe": {
            "httpGet": {"path": "/v2/", "port": "registry", "scheme": "HTTP"},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
            "successThreshold": 1,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": PRESTOP_SLEEP_SECONDS}}},
        "securityContext": pods.container_security_context(),
        "volumeMounts": [
            pods.STORAGE_MOUNT,
            {"name": "config", "mountPath": constants.CONFIG_DIRECTORY, "readOnly": True},
        ],
    }
    dumped = {
        key: dict(value)
        for key, value in (("requests", resources.requests), ("limits", resources.limits))
        if value
    }
    if dumped:
        container["resources"] = {
            kind: {name: str(amount) for name, amount in amounts.items()}
            for kind, amounts in dumped.items()
        }
    return container
