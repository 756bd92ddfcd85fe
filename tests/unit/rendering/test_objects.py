"""Desired objects, whole: an accidental extra field fails as much as a missing one.

What contributes: the spec, the operator's settings, and the roll. Each test changes one thing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from pullthrough.models import constants
from pullthrough.models.cache import GcMode, PullThroughCache
from pullthrough.models.settings import KeeperSettings
from pullthrough.rendering import job, names, objects, statefulset
from pullthrough.rendering.roll import Roll
from tests import builders

SETTINGS = builders.SETTINGS
OFF = Roll(mode=GcMode.DISABLED, ttl="168h", keeper_image="example.org/pullthrough:1")
ON = dataclasses.replace(
    OFF,
    mode=GcMode.ENABLED,
    ttl="1h",
    migration="uid-job",
    collected_by="2026-01-01T01:00:00Z",
    verified="uid-before",
    reverted="3/1/2026-01-01T00:00:00Z",
)

OWNER = {
    "apiVersion": "pullthrough.dev/v1alpha1",
    "kind": "PullThroughCache",
    "name": "c",
    "uid": "uid-cache",
    "controller": True,
    "blockOwnerDeletion": True,
}
OF_CACHE = {
    "app.kubernetes.io/managed-by": "pullthrough-operator",
    "app.kubernetes.io/name": "pull-through-cache",
    "app.kubernetes.io/instance": "ptc-c",
    "app.kubernetes.io/component": "registry",
    "pullthrough.dev/cache": "c",
}
OF_MEMBER = {**OF_CACHE, "pullthrough.dev/member": "0"}
OF_MIGRATION = {**OF_MEMBER, "app.kubernetes.io/component": "migration"}

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
STORAGE = {"name": "storage", "mountPath": "/var/lib/registry"}
TMP = {"name": "tmp", "mountPath": "/tmp"}
CLAIM_VOLUME = {"name": "storage", "persistentVolumeClaim": {"claimName": "c-0"}}


def metadata(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "namespace": "n", "labels": labels, "ownerReferences": [OWNER]}


def service_named(name: str, labels: dict[str, str], selector: dict[str, str]) -> dict[str, Any]:
    port = {"name": "registry", "port": 5000, "protocol": "TCP", "targetPort": "registry"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, labels),
        "spec": {"type": "ClusterIP", "selector": selector, "ports": [port]},
    }


def test_the_service_over_all_members() -> None:
    selector = {"pullthrough.dev/cache": "c", "app.kubernetes.io/component": "registry"}
    assert objects.cache_service(builders.cache()) == service_named("c", OF_CACHE, selector)


def test_the_service_of_a_member() -> None:
    selector = {
        "pullthrough.dev/cache": "c",
        "pullthrough.dev/member": "0",
        "app.kubernetes.io/component": "registry",
    }
    assert objects.member_service(builders.cache(), 0) == service_named("c-0", OF_MEMBER, selector)


def test_the_configuration_is_immutable_and_named_by_its_content() -> None:
    found = objects.config_map(builders.cache(), OFF)
    content = found["data"]["config.yml"]
    assert found == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(names.config_map("c", content), OF_CACHE),
        "immutable": True,
        "data": {"config.yml": content},
    }


CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {
        "name": "c-0",
        "namespace": "n",
        "labels": OF_MEMBER,
        "annotations": {
            "pullthrough.dev/upstream-host": "docker.io",
            "pullthrough.dev/used-by": "uid-cache/0",
        },
    },
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}},
}


def test_the_claim_has_no_owner_so_that_it_stays() -> None:
    assert objects.claim(builders.cache(), 0, "10Gi") == CLAIM


def test_the_claim_goes_with_the_cache_only_if_the_policy_says_so() -> None:
    cache = builders.cache(storage={"retentionPolicy": {"whenDeleted": "Delete"}})
    wanted = builders.merged(CLAIM, {"metadata": {"ownerReferences": [OWNER]}})
    assert objects.claim(cache, 0, "10Gi") == wanted


def test_the_claim_has_the_class_and_access_mode_of_the_spec() -> None:
    volume = {"storageClassName": "fast", "accessMode": "ReadWriteOncePod"}
    cache = builders.cache(storage={"volume": volume})
    changes = {"storageClassName": "fast", "accessModes": ["ReadWriteOncePod"]}
    assert objects.claim(cache, 0, "10Gi") == builders.merged(CLAIM, {"spec": changes})


# -- the member ----------------------------------------------------------------------------------------------------------


def member(roll: Roll = OFF, **spec: Any) -> dict[str, Any]:
    return statefulset.stateful_set(builders.cache(**spec), 0, roll, SETTINGS)


def template_of(found: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = found["spec"]["template"]
    return template


def container(found: dict[str, Any], name: str) -> dict[str, Any]:
    spec = template_of(found)["spec"]
    return next(c for c in [*spec["initContainers"], *spec["containers"]] if c["name"] == name)


def asked(found: Any) -> str:
    mark: str = template_of(found)["metadata"]["annotations"]["pullthrough.dev/asked"]
    assert re.fullmatch("[0-9a-f]{16}", mark)
    return mark


def stamp(found: dict[str, Any]) -> str:
    return str(template_of(found)["metadata"]["annotations"][constants.ANNOTATION_TEMPLATE])


def test_a_member_with_gc_off_whole() -> None:
    found = member()
    cache = builders.cache()
    config = objects.config_map(cache, OFF)["metadata"]["name"]
    assert found == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {**metadata("c-0", OF_MEMBER), "annotations": {}},
        "spec": {
            "replicas": 1,
            "serviceName": "c-0",
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            "revisionHistoryLimit": 2,
            "selector": {
                "matchLabels": {
                    "pullthrough.dev/cache": "c",
                    "pullthrough.dev/member": "0",
                    "app.kubernetes.io/component": "registry",
                }
            },
            "template": {
                "metadata": {
                    "labels": OF_MEMBER,
                    "annotations": {
                        "pullthrough.dev/template": stamp(found),
                        "pullthrough.dev/asked": asked(found),
                        "pullthrough.dev/gc-mode": "Disabled",
                        "pullthrough.dev/gc-ttl": "168h",
                    },
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": POD_SECURITY,
                    "terminationGracePeriodSeconds": 60,
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {
                                "matchLabels": {
                                    "pullthrough.dev/cache": "c",
                                    "app.kubernetes.io/component": "registry",
                                }
                            },
                        }
                    ],
                    "initContainers": [prepare(stamp(found)), keeper(stamp(found))],
                    "containers": [REGISTRY],
                    "volumes": [
                        CLAIM_VOLUME,
                        {"name": "config", "configMap": {"name": config}},
                        {"name": "tmp", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def prepare(template: str) -> dict[str, Any]:
    return {
        "name": "prepare",
        "image": "example.org/pullthrough:1",
        "imagePullPolicy": "IfNotPresent",
        "args": [
            "prepare",
            "--storage=/var/lib/registry",
            "--series=v3",
            "--gc=Disabled",
            "--ttl=168h",
            "--upstream-host=docker.io",
            f"--template={template}",
            "--termination-message=/dev/termination-log",
        ],
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePath": "/dev/termination-log",
        "volumeMounts": [STORAGE, TMP],
    }


def keeper(template: str) -> dict[str, Any]:
    return {
        "name": "keeper",
        "image": "example.org/pullthrough:1",
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": [
            "keep",
            "--storage=/var/lib/registry",
            "--series=v3",
            "--no-ttl",
            "--upstream-url=https://registry-1.docker.io",
            "--registry=127.0.0.1:5000",
            "--listen=[::]:5002",
            f"--template={template}",
            "--sweep-interval=10m",
            "--minimum-age=1h",
            "--upload-age=24h",
            "--data-delay=60s",
            "--state-interval=2m",
            "--backstop-margin=10m",
            "--probe-interval=30s",
            "--rate=50",
        ],
        "ports": [{"name": "keeper", "containerPort": 5002, "protocol": "TCP"}],
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [STORAGE, TMP],
    }


REGISTRY = {
    "name": "registry",
    "image": "example.org/registry:3.1.2",
    "imagePullPolicy": "IfNotPresent",
    "args": ["serve", "/etc/pullthrough/config.yml"],
    "env": [{"name": "OTEL_TRACES_EXPORTER", "value": "none"}],
    "ports": [{"name": "registry", "containerPort": 5000, "protocol": "TCP"}],
    "readinessProbe": {
        "httpGet": {"path": "/v2/", "port": "registry", "scheme": "HTTP"},
        "periodSeconds": 2,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
        "successThreshold": 1,
    },
    "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
    "securityContext": CONTAINER_SECURITY,
    "volumeMounts": [
        STORAGE,
        {"name": "config", "mountPath": "/etc/pullthrough", "readOnly": True},
    ],
}


def test_a_member_that_is_switched_on_names_the_job_and_remembers_the_switch() -> None:
    found = member(ON)
    assert found["metadata"]["annotations"] == {
        "pullthrough.dev/collected-by": "2026-01-01T01:00:00Z",
        "pullthrough.dev/verified": "uid-before",
        "pullthrough.dev/reverted": "3/1/2026-01-01T00:00:00Z",
    }
    assert template_of(found)["metadata"]["annotations"] == {
        "pullthrough.dev/template": stamp(found),
        "pullthrough.dev/asked": asked(found),
        "pullthrough.dev/gc-mode": "Enabled",
        "pullthrough.dev/gc-ttl": "1h",
        "pullthrough.dev/migration": "uid-job",
    }
    assert {"--gc=Enabled", "--ttl=1h", "--migration=uid-job"} <= set(
        container(found, "prepare")["args"]
    )
    assert "--ttl=1h" in container(found, "keeper")["args"]
    assert "--no-ttl" not in container(found, "keeper")["args"]


def test_what_is_remembered_on_the_stateful_set_restarts_nothing() -> None:
    forgotten = dataclasses.replace(ON, collected_by=None, verified=None, reverted=None)
    assert template_of(member(ON)) == template_of(member(forgotten))


CHANGES: list[dict[str, Any]] = [
    {"upstream": {"url": "https://mirror.example.org"}},
    {"registry": {"image": "other:1"}},
    {"registry": {"series": "v2"}},
    {"podTemplate": {"labels": {"a": "b"}}},
    {"podTemplate": {"resources": {"limits": {"memory": "1Gi"}}}},
    {"podTemplate": {"nodeSelector": {"a": "b"}}},
    {"podTemplate": {"priorityClassName": "high"}},
]


@pytest.mark.parametrize("change", CHANGES, ids=json.dumps)
def test_every_change_of_the_pod_is_another_template(change: dict[str, Any]) -> None:
    assert stamp(member(**change)) != stamp(member())


def test_the_keepers_settings_are_handed_on() -> None:
    settings = dataclasses.replace(SETTINGS, keeper=KeeperSettings(sweep_interval="1s", rate=7))
    found = statefulset.stateful_set(builders.cache(), 0, OFF, settings)
    assert {"--sweep-interval=1s", "--rate=7"} <= set(container(found, "keeper")["args"])


def test_users_labels_and_annotations_are_added_and_ours_win() -> None:
    extra = {"labels": {"team": "a"}, "annotations": {"note": "b"}}
    template = template_of(member(podTemplate=extra))
    assert template["metadata"]["labels"] == {"team": "a", **OF_MEMBER}
    assert template["metadata"]["annotations"].items() >= {"note": "b"}.items()
    assert member(podTemplate=extra)["spec"]["selector"] == member()["spec"]["selector"]
    cache = builders.cache()
    forged_extra = cache.spec.pod_template.model_copy(
        update={"labels": {constants.LABEL_CACHE: "x"}}
    )
    forged: PullThroughCache = cache.model_copy(
        update={"spec": cache.spec.model_copy(update={"pod_template": forged_extra})}
    )
    found = statefulset.stateful_set(forged, 0, OFF, SETTINGS)
    assert template_of(found)["metadata"]["labels"] == OF_MEMBER


def test_users_decide_about_the_pods_place_identity_and_resources() -> None:
    extra: dict[str, Any] = {
        "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 5}],
        "affinity": {"podAntiAffinity": {"x": []}},
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccountName": "sa",
        "priorityClassName": "high",
    }
    found = member(podTemplate=extra)
    spec = template_of(found)["spec"]
    for field in set(extra) - {"resources"}:
        assert spec[field] == extra[field], field
    assert container(found, "registry")["resources"] == {
        "requests": {"cpu": "1"},
        "limits": {"memory": "1Gi"},
    }


def test_the_default_image_is_the_series_and_the_specs_wins() -> None:
    v2 = member(registry={"series": "v2"})
    assert container(v2, "registry")["image"] == "example.org/registry:2.8.2"
    own = member(registry={"image": "own:1"})
    assert container(own, "registry")["image"] == "own:1"


# -- the migration -------------------------------------------------------------------------------------------------------


def migration(**spec: Any) -> dict[str, Any]:
    return job.migration_job(
        builders.cache(**spec),
        0,
        asked="0123456789abcdef",
        attempt=2,
        node="node-1",
        image="example.org/pullthrough:1",
        settings=SETTINGS,
    )


def test_the_migration_job_whole() -> None:
    no_mesh = {"sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"}
    on_node = {"key": "metadata.name", "operator": "In", "values": ["node-1"]}
    uid = {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}
    assert migration(gc={"ttl": "1h"}) == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **metadata("c-0-gc-01234567-2", OF_MIGRATION),
            "annotations": {
                "pullthrough.dev/attempt": "2",
                "pullthrough.dev/request": "0123456789abcdef",
            },
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": 3600,
            "template": {
                "metadata": {
                    "labels": {**OF_MIGRATION, "sidecar.istio.io/inject": "false"},
                    "annotations": no_mesh,
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": POD_SECURITY,
                    "restartPolicy": "Never",
                    "affinity": {
                        "nodeAffinity": {
                            "requiredDuringSchedulingIgnoredDuringExecution": {
                                "nodeSelectorTerms": [{"matchFields": [on_node]}]
                            }
                        }
                    },
                    "containers": [
                        {
                            "name": "migrate",
                            "image": "example.org/pullthrough:1",
                            "imagePullPolicy": "IfNotPresent",
                            "args": [
                                "migrate",
                                "--storage=/var/lib/registry",
                                "--series=v3",
                                "--ttl=1h",
                                "--id=$(JOB_UID)",
                                "--upstream-host=docker.io",
                                "--termination-message=/dev/termination-log",
                            ],
                            "env": [{"name": "JOB_UID", "valueFrom": {"fieldRef": uid}}],
                            "securityContext": CONTAINER_SECURITY,
                            "terminationMessagePath": "/dev/termination-log",
                            "volumeMounts": [STORAGE, TMP],
                        }
                    ],
                    "volumes": [CLAIM_VOLUME, {"name": "tmp", "emptyDir": {}}],
                },
            },
        },
    }


def test_the_job_checks_the_registrys_memory_limit() -> None:
    found = migration(podTemplate={"resources": {"limits": {"memory": "64Mi"}}})
    args = found["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--memory-limit={64 * 1024 * 1024}" in args


def test_the_job_gets_the_spread_and_a_priority_if_they_are_given() -> None:
    settings = dataclasses.replace(SETTINGS, migration_priority_class="low")
    cache = builders.cache(gc={"spread": "1h"})
    found = job.migration_job(
        cache, 0, asked="0" * 16, attempt=1, node="n", image="i", settings=settings
    )
    spec = found["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "low"
    assert "--spread=1h" in spec["containers"][0]["args"]


def test_the_job_tolerates_what_the_member_tolerates() -> None:
    tolerations = [{"key": "a", "operator": "Exists"}]
    found = migration(podTemplate={"tolerations": tolerations})
    assert found["spec"]["template"]["spec"]["tolerations"] == tolerations


REQUESTS: list[dict[str, Any]] = [
    {"gc": {"ttl": "2h"}},
    {"gc": {"spread": "1h"}},
    {"registry": {"series": "v2"}},
    {"registry": {"image": "other:1"}},
    {"uid": "uid-second"},
]


@pytest.mark.parametrize("change", REQUESTS, ids=json.dumps)
def test_what_makes_an_earlier_result_worthless_is_another_request(change: dict[str, Any]) -> None:
    assert job.request(builders.cache(**change), 0, 1, SETTINGS) != job.request(
        builders.cache(), 0, 1, SETTINGS
    )


def test_another_generation_of_the_stateful_set_is_another_request() -> None:
    assert job.request(builders.cache(), 0, 1, SETTINGS) != job.request(
        builders.cache(), 0, 2, SETTINGS
    )
