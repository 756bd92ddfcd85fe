"""The definition on a real API server: what it accepts, fills in, drops, and refuses with which sentence.

What contributes: fields given or not (defaults), rules on one object, rules between the old and the new object, fields
that nobody knows, and what kubectl makes of it.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import programs
from e2e.cluster.apiserver import ApiServer
from e2e.cluster.rest import Api
from pullthrough.models import cache, conditions, crd, fields
from pullthrough.models.cache import PullThroughCache

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).parents[2]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

Resource = dict[str, Any]


@pytest.fixture(scope="session")
def api(api_server: ApiServer) -> Api:
    """The API server with the definition in it."""
    api = Api(url=api_server.url, token=api_server.token, ca=api_server.ca_file)
    path = f"{CRDS}/{crd.NAME}"
    if api.find(path) is None:
        api.ask("POST", CRDS, crd.definition())
    deadline = time.monotonic() + 30
    while not api.answers("/apis/pullthrough.dev/v1alpha1/pullthroughcaches"):
        assert time.monotonic() < deadline, api.get(path).get("status")
        time.sleep(0.05)
    return api


@pytest.fixture(scope="session")
def namespace(api: Api) -> str:
    name = f"crd-{uuid.uuid4().hex[:8]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    api.ask("POST", "/api/v1/namespaces", body)
    return name


class Caches:
    """The resources of one namespace, by plain HTTP."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.path = f"/apis/pullthrough.dev/v1alpha1/namespaces/{namespace}/pullthroughcaches"

    def create(self, resource: Resource, query: str = "") -> Resource:
        return dict(json.loads(self.api.ask("POST", self.path + query, resource)))

    def change(self, name: str, subresource: str = "", **changes: Any) -> Resource:
        path = f"{self.path}/{name}{subresource}"
        return dict(json.loads(self.api.ask("PATCH", path, with_changes({}, changes))))

    def refused_create(self, resource: Resource) -> str:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.create(resource, "?dryRun=All")
        return said(caught.value)

    def refused_change(self, name: str, **changes: Any) -> str:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.change(name, **changes)
        return said(caught.value)


@pytest.fixture
def caches(api: Api, namespace: str) -> Caches:
    return Caches(api, namespace)


@pytest.fixture
def existing(caches: Caches) -> str:
    """Name of a cache that is there already, with a class."""
    name = f"c{uuid.uuid4().hex[:8]}"
    made = resource(**{"metadata.name": name, "spec.storage.volume.storageClassName": "fast"})
    caches.create(made)
    return name


def said(error: urllib.error.HTTPError) -> str:
    """The API server's sentence; every refusal here is 422 Invalid."""
    with error:
        status = json.loads(error.read())
    assert (error.code, status["reason"]) == (422, "Invalid"), status
    return str(status["message"])


def with_changes(base: Resource, changes: dict[str, Any]) -> Resource:
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = base
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return base


def resource(**changes: Any) -> Resource:
    """A minimal resource with values at dotted paths."""
    minimal: Resource = {
        "apiVersion": "pullthrough.dev/v1alpha1",
        "kind": "PullThroughCache",
        "metadata": {"name": "docker-hub"},
        "spec": {"upstream": {"host": "docker.io"}, "storage": {"volume": {"size": "50Gi"}}},
    }
    return with_changes(minimal, changes)


def test_the_definition_is_accepted_and_served_without_complaints(api: Api) -> None:
    status = api.get(f"{CRDS}/{crd.NAME}")["status"]
    by_type = {condition["type"]: condition["status"] for condition in status["conditions"]}
    assert by_type == {"NamesAccepted": "True", "Established": "True"}
    assert status["acceptedNames"]["shortNames"] == ["ptc"]


def test_defaults_are_filled_in(caches: Caches) -> None:
    made = caches.create(resource(), "?dryRun=All")
    assert made["spec"] == {
        "upstream": {"host": "docker.io", "insecure": False},
        "gc": {"mode": "Enabled", "ttl": "168h"},
        "replicas": 1,
        "storage": {
            "volume": {"size": "50Gi", "accessMode": "ReadWriteOnce"},
            "retentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        },
        "registry": {"series": "v3"},
        "suspend": False,
    }
    assert made["status"] == {"observedGeneration": -1}


def test_the_reader_makes_the_same_of_a_resource_before_and_after_defaulting(
    caches: Caches,
) -> None:
    given = resource(**{"metadata.namespace": caches.namespace})
    made = caches.create(given, "?dryRun=All")
    assert PullThroughCache.parse(made).spec == PullThroughCache.parse(given).spec


def test_half_given_objects_get_the_other_half(caches: Caches) -> None:
    half = resource(
        **{"spec.gc.mode": "Disabled", "spec.storage.retentionPolicy.whenDeleted": "Delete"}
    )
    spec = caches.create(half, "?dryRun=All")["spec"]
    assert spec["gc"] == {"mode": "Disabled", "ttl": "168h"}
    assert spec["storage"]["retentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Retain"}


def test_unknown_fields_are_pruned_and_affinity_is_kept_whole(caches: Caches) -> None:
    affinity = {"nodeAffinity": {"whatever": [{"is": "here"}]}}
    newer = resource(**{"spec.gc.eviction": {"a": 1}, "spec.podTemplate.affinity": affinity})
    spec = caches.create(newer, "?dryRun=All")["spec"]
    assert spec["gc"] == {"mode": "Enabled", "ttl": "168h"}
    assert spec["podTemplate"] == {"affinity": affinity}


def test_strict_clients_are_told_about_unknown_fields(caches: Caches) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        caches.create(resource(**{"spec.gc.tttl": "1h"}), "?dryRun=All&fieldValidation=Strict")
    with caught.value as error:
        assert 'unknown field "spec.gc.tttl"' in json.loads(error.read())["message"]


WRONG: list[tuple[Resource, str, str]] = [
    ({"metadata.name": "9lives"}, "", cache.NAME_RULE.message),
    ({"metadata.name": "a" * 41}, "", cache.NAME_RULE.message),
    ({"metadata.name": "a.b"}, "", cache.NAME_RULE.message),
    ({"spec.upstream.host": "Docker.io"}, "spec.upstream.host", "a lower-case host[:port]"),
    ({"spec.upstream.host": "https://docker.io"}, "spec.upstream.host", "without scheme and path"),
    ({"spec.upstream.host": "docker.io/library"}, "spec.upstream.host", "without scheme and path"),
    ({"spec.upstream.host": "docker.io:99999"}, "spec.upstream.host", "a lower-case host[:port]"),
    ({"spec.upstream.url": "http://mirror"}, "spec.upstream.url", "or set upstream.insecure: true"),
    ({"spec.upstream.url": "ftp://mirror"}, "spec.upstream.url", "must be https://host[:port]"),
    ({"spec.upstream.url": "https://mirror/v2/"}, "spec.upstream.url", "no path"),
    ({"spec.upstream.url": "https://mirror?x=y"}, "spec.upstream.url", "no path, query"),
    ({"spec.upstream.url": "https://a:b@mirror"}, "spec.upstream.url", "user or password"),
    ({"spec.upstream.url": "https://mirror:0"}, "spec.upstream.url", "must be https://host[:port]"),
    ({"spec.gc.ttl": "7d"}, "spec.gc.ttl", "must be a Go duration such as 168h"),
    ({"spec.gc.ttl": "168"}, "spec.gc.ttl", "must be a Go duration such as 168h"),
    (
        {"spec.gc.ttl": "59s"},
        "spec.gc.ttl",
        "at least 1m; to keep everything, set gc.mode: Disabled",
    ),
    (
        {"spec.gc.ttl": "0h"},
        "spec.gc.ttl",
        "at least 1m; to keep everything, set gc.mode: Disabled",
    ),
    ({"spec.gc.spread": "soon"}, "spec.gc.spread", "must be a Go duration such as 168h"),
    ({"spec.gc.spread": "85h"}, "spec.gc.spread", "at most half of gc.ttl: shorten it"),
    ({"spec.gc.ttl": "1h", "spec.gc.spread": "31m"}, "spec.gc.spread", "at most half of gc.ttl"),
    ({"spec.gc.mode": "On"}, "spec.gc.mode", 'supported values: "Enabled", "Disabled"'),
    ({"spec.replicas": 33}, "spec.replicas", "replicas must be between 1 and 32"),
    ({"spec.replicas": 0}, "spec.replicas", "replicas must be between 1 and 32"),
    (
        {"spec.storage.volume.size": "0Gi"},
        "spec.storage.volume.size",
        "greater than zero such as 50Gi",
    ),
    (
        {"spec.storage.volume.size": "-1Gi"},
        "spec.storage.volume.size",
        "greater than zero such as 50Gi",
    ),
    (
        {"spec.storage.volume.size": "big"},
        "spec.storage.volume.size",
        "greater than zero such as 50Gi",
    ),
    ({"spec.storage": {}}, "spec.storage.volume", "Required value"),
    ({"spec.storage": {"s3": {"bucket": "b"}}}, "spec.storage.volume", "Required value"),
    (
        {"spec.storage.volume.accessMode": "ReadWriteMany"},
        "spec.storage.volume.accessMode",
        'supported values: "ReadWriteOnce", "ReadWriteOncePod"',
    ),
    (
        {"spec.registry.series": "v2", "spec.gc.ttl": "24h"},
        "spec.gc.ttl",
        "leave gc.ttl at 168h, or use registry.series: v3",
    ),
    ({"spec.registry.series": "v4"}, "spec.registry.series", 'supported values: "v3", "v2"'),
    ({"spec.registry.image": "a b"}, "spec.registry.image", "should match"),
    (
        {"spec.podTemplate.labels": {"app.kubernetes.io/name": "x"}},
        "spec.podTemplate.labels",
        "use a prefix of your own",
    ),
    (
        {"spec.podTemplate.labels": {"pullthrough.dev/cache": "x"}},
        "spec.podTemplate.labels",
        "use a prefix of your own",
    ),
    (
        {"spec.podTemplate.annotations": {"pullthrough.dev/template": "x"}},
        "spec.podTemplate.annotations",
        "use a prefix of your own",
    ),
    (
        {"spec.podTemplate.resources": {"limits": {"memory": "lots"}}},
        "spec.podTemplate.resources.limits.memory",
        "should match",
    ),
]


@pytest.mark.parametrize(("changes", "field", "sentence"), WRONG, ids=str)
def test_a_wrong_resource_is_refused_with_a_sentence(
    caches: Caches, changes: Resource, field: str, sentence: str
) -> None:
    refused = caches.refused_create(resource(**changes))
    assert sentence in refused
    assert f"{field}: " in refused


@pytest.mark.parametrize(
    "changes",
    [changes for changes, _, _ in WRONG if "spec.registry.image" not in changes],
    ids=str,
)
def test_the_reader_refuses_what_the_api_server_refuses(changes: Resource) -> None:
    given = resource(**{"metadata.namespace": "n", **changes})
    with pytest.raises(cache.InvalidCache):
        PullThroughCache.parse(given)


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata.name": "a"},
        {"metadata.name": "a" * 40},
        {"spec.upstream.host": "registry.example.com:5000"},
        {"spec.upstream.url": "https://mirror.example:8443/"},
        {"spec.upstream.url": "https://[2001:db8::1]:5000"},
        {"spec.upstream.url": "http://mirror", "spec.upstream.insecure": True},
        {"spec.gc.ttl": "1m"},
        {"spec.gc.ttl": "1h30m0.5s"},
        {"spec.gc.ttl": "999999h999999h"},
        {"spec.gc.ttl": "1h", "spec.gc.spread": "30m"},
        {"spec.registry.series": "v2", "spec.gc.ttl": "10080m"},
        {"spec.registry.series": "v2", "spec.gc.mode": "Disabled"},
        {"spec.storage.volume.size": "1.5Ti"},
        {"spec.storage.volume.storageClassName": ""},
        {"spec.podTemplate.resources": {"limits": {"cpu": 2, "memory": "512Mi"}}},
        {"spec.podTemplate.labels": {"team": "platform"}},
        {"spec.podTemplate.tolerations": [{"operator": "Exists"}]},
        {"spec.podTemplate.imagePullSecrets": [{"name": "pull"}]},
    ],
    ids=str,
)
def test_a_right_resource_is_accepted_and_read(caches: Caches, changes: Resource) -> None:
    made = caches.create(resource(**changes), "?dryRun=All")
    PullThroughCache.parse(made)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"spec.upstream.host": "ghcr.io"},
            "upstream.host is immutable: what is stored belongs to it",
        ),
        ({"spec.storage.volume.storageClassName": "slow"}, "storageClassName is immutable"),
        ({"spec.storage.volume.storageClassName": None}, "storageClassName is immutable"),
        ({"spec.storage.volume.accessMode": "ReadWriteOncePod"}, "accessMode is immutable"),
    ],
    ids=str,
)
def test_what_storage_hangs_on_is_immutable(
    caches: Caches, existing: str, changes: Resource, sentence: str
) -> None:
    refused = caches.refused_change(existing, **changes)
    assert sentence in refused
    assert "create another PullThroughCache" in refused


def test_a_storage_class_cannot_be_added_later_either(caches: Caches) -> None:
    caches.create(resource(**{"metadata.name": "no-class"}))
    changes = {"spec.storage.volume.storageClassName": "fast"}
    assert "storageClassName is immutable" in caches.refused_change("no-class", **changes)


def test_everything_else_can_be_changed(caches: Caches, existing: str) -> None:
    changed = caches.change(
        existing,
        **{
            "spec.upstream.url": "https://mirror",
            "spec.gc": {"mode": "Disabled", "ttl": "24h", "spread": "1h"},
            "spec.storage.volume.size": "10Gi",
            "spec.storage.retentionPolicy.whenDeleted": "Delete",
            "spec.registry.image": "registry:3.1.2",
            "spec.suspend": True,
        },
    )
    assert changed["metadata"]["generation"] == 2


def test_every_rule_of_the_definition_was_seen_to_refuse_something() -> None:
    """Each message of a rule is asserted above: a rule added without its test fails here."""
    asserted = [sentence for _, _, sentence in WRONG] + [
        "upstream.host is immutable",
        "storageClassName is immutable",
        "accessMode is immutable",
    ]

    def messages(schema: Resource) -> Iterator[str]:
        yield from (rule["message"] for rule in schema.get(fields.RULES, []))
        below = [*schema.get("properties", {}).values(), schema.get("items")]
        for child in [*below, schema.get("additionalProperties")]:
            if isinstance(child, dict):
                yield from messages(child)

    root = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    unseen = {m for m in messages(root) if not any(sentence in m for sentence in asserted)}
    assert unseen == set()


def test_a_status_as_passes_write_it_is_stored_whole(caches: Caches, existing: str) -> None:
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Succeeded",
        "message": conditions.REASONS["Succeeded"],
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    status = {
        "observedGeneration": 1,
        "conditions": [ready],
        "endpoint": "http://c.n.svc:5000",
        "gc": "Enabled 168h",
        "collectedBy": "2026-01-09T03:04:05Z",
        "members": [
            {
                "name": f"{existing}-0",
                "ready": True,
                "endpoint": "http://c-0.n.svc:5000",
                "storage": {"claim": f"{existing}-0", "capacity": "50Gi"},
                "gc": {
                    "mode": "Enabled",
                    "ttl": "168h",
                    "collectedBy": "2026-01-09T03:04:05Z",
                    "uncovered": 0,
                },
                "migration": {"phase": "Running", "job": "j", "attempt": 1, "message": "m"},
            }
        ],
    }
    assert caches.change(existing, "/status", status=status)["status"] == status


class Kubectl:
    """The real kubectl, against this API server."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        program = programs.ensure("kubectl")["kubectl"]
        self.command = [program, f"--kubeconfig={server.kubeconfig}", "-n", namespace]

    def run(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def kubectl(api_server: ApiServer, api: Api, namespace: str) -> Kubectl:
    assert api is not None
    return Kubectl(api_server, namespace)


def test_the_example_is_applied_by_kubectl_and_applying_it_again_changes_nothing(
    kubectl: Kubectl,
) -> None:
    example = ROOT / "examples" / "cache.yaml"
    assert "created" in kubectl.run("apply", "-f", example)
    assert "unchanged" in kubectl.run("apply", "-f", example)
    (line,) = kubectl.run("get", "ptc", "docker-hub", "--no-headers").splitlines()
    assert line.split()[:2] == ["docker-hub", "docker.io"]


def test_the_example_has_no_field_that_strict_validation_refuses() -> None:
    text = (ROOT / "examples" / "cache.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert 6 <= len(lines) <= 15
    assert yaml.safe_load(text)["spec"]["gc"] == {"mode": "Disabled"}


def test_columns_answer_the_first_questions(
    kubectl: Kubectl, caches: Caches, existing: str
) -> None:
    ready = {"type": "Ready", "status": "False", "reason": "MemberStarting", "message": "m"}
    moved = {**ready, "lastTransitionTime": "2026-01-02T03:04:05Z"}
    status = {
        "conditions": [moved],
        "gc": "Migrating",
        "endpoint": "http://e:5000",
        "collectedBy": "2026-01-09T03:04:05Z",
    }
    caches.change(existing, "/status", status=status)
    header, line = kubectl.run("get", "ptc", existing).splitlines()
    assert header.split() == ["NAME", "UPSTREAM", "READY", "STATUS", "GC", "AGE"]
    assert line.split()[:-1] == [existing, "docker.io", "False", "MemberStarting", "Migrating"]
    header, line = kubectl.run("get", "ptc", existing, "-o", "wide").splitlines()
    assert header.split()[5:-1] == ["ENDPOINT", "TTL", "COLLECTED-BY"]
    assert line.split()[5:-1] == ["http://e:5000", "168h", "2026-01-09T03:04:05Z"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("ptc", "A pull-through cache of one upstream"),
        ("ptc.spec.gc.ttl", "pulls do not extend it"),
        ("ptc.spec.storage.retentionPolicy.whenDeleted", "its claims stay"),
        ("ptc.status.members.migration.phase", "Retrying"),
    ],
)
def test_kubectl_explains_the_fields(kubectl: Kubectl, field: str, text: str) -> None:
    assert text in " ".join(kubectl.run("explain", field).split())
