"""Reading the resource: what it becomes, and how a wrong one is refused.

What contributes: which fields are given (defaults), rules on one field, rules across fields, fields nobody knows.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pullthrough import durations
from pullthrough.models import cache, fields
from pullthrough.models.cache import InvalidCache, PullThroughCache

MINIMAL: dict[str, Any] = {
    "apiVersion": "pullthrough.dev/v1alpha1",
    "kind": "PullThroughCache",
    "metadata": {"name": "docker-hub", "namespace": "registry-caches"},
    "spec": {"upstream": {"host": "docker.io"}, "storage": {"volume": {"size": "50Gi"}}},
}

FULL_SPEC = """
upstream: {host: 'registry.example.com:5000', url: 'http://mirror:8080', insecure: true}
gc: {mode: Disabled, ttl: 36h, spread: 1h30m}
replicas: 1
storage:
  volume: {size: 50Gi, storageClassName: fast, accessMode: ReadWriteOncePod}
  retentionPolicy: {whenDeleted: Delete, whenScaled: Delete}
registry: {image: 'registry.example.com/registry:3.1.2', series: v3}
podTemplate:
  labels: {team: platform}
  annotations: {example.com/scrape: 'true'}
  resources: {requests: {cpu: 1, memory: 256Mi}, limits: {memory: 1Gi}}
  nodeSelector: {disk: ssd}
  tolerations: [{key: dedicated, operator: Equal, value: registry, effect: NoExecute, tolerationSeconds: 60}]
  affinity: {nodeAffinity: {anything: [1, two]}}
  imagePullSecrets: [{name: pull}]
  serviceAccountName: registry
  priorityClassName: high
suspend: true
"""


def raw(**changes: Any) -> dict[str, Any]:
    """The minimal resource with values at dotted paths: `raw(**{"spec.gc.ttl": "1h"})`."""
    resource = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = resource
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return resource


def refusal(**changes: Any) -> str:
    with pytest.raises(InvalidCache) as caught:
        PullThroughCache.parse(raw(**changes))
    return str(caught.value)


def test_a_minimal_resource_gets_the_defaults_that_the_api_server_would_fill_in() -> None:
    assert PullThroughCache.parse(MINIMAL).spec.as_json() == {
        "upstream": {"host": "docker.io", "insecure": False},
        "gc": {"mode": "Enabled", "ttl": "168h"},
        "replicas": 1,
        "storage": {
            "volume": {"size": "50Gi", "accessMode": "ReadWriteOnce"},
            "retentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        },
        "registry": {"series": "v3"},
        "podTemplate": {
            "labels": {},
            "annotations": {},
            "resources": {"requests": {}, "limits": {}},
            "nodeSelector": {},
            "tolerations": [],
            "affinity": {},
            "imagePullSecrets": [],
        },
        "suspend": False,
    }


def test_every_field_comes_through_reading_unchanged() -> None:
    spec = yaml.safe_load(FULL_SPEC)
    assert PullThroughCache.parse(raw(spec=spec)).spec.as_json() == spec


def test_the_full_example_of_these_tests_really_sets_every_field() -> None:
    def unset(model: type[fields.Model], given: dict[str, Any], path: str) -> list[str]:
        missing = []
        for name, info in model.model_fields.items():
            alias = info.alias or name
            if alias not in given:
                missing.append(f"{path}.{alias}")
            elif isinstance(info.annotation, type) and issubclass(info.annotation, fields.Model):
                missing += unset(info.annotation, given[alias], f"{path}.{alias}")
        return missing

    assert unset(cache.Spec, yaml.safe_load(FULL_SPEC), "spec") == []


def test_metadata_is_read_as_far_as_passes_need_it() -> None:
    metadata = {
        "name": "c",
        "namespace": "n",
        "uid": "u",
        "generation": 7,
        "annotations": {"a": "b"},
        "deletionTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"ignored": "yes"},
    }
    read = PullThroughCache.parse(raw(metadata=metadata))
    seen = (read.name, read.namespace, read.uid, read.generation, read.annotations)
    assert seen == ("c", "n", "u", 7, {"a": "b"})
    assert read.deletion_timestamp == "2026-01-02T03:04:05Z"


def test_fields_that_nobody_knows_are_ignored() -> None:
    newer = raw(**{"spec.gc.eviction": {"highWater": "80%"}, "spec.surprise": 1})
    assert PullThroughCache.parse(newer) == PullThroughCache.parse(MINIMAL)


def test_null_means_unset() -> None:
    nulls = raw(**{"spec.gc": {"mode": None, "ttl": None, "spread": None}, "spec.registry": None})
    assert PullThroughCache.parse(nulls) == PullThroughCache.parse(MINIMAL)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        pytest.param({}, "https://registry-1.docker.io", id="Docker Hub answers elsewhere"),
        pytest.param({"host": "ghcr.io"}, "https://ghcr.io", id="others under their name"),
        pytest.param({"host": "r.example:5000"}, "https://r.example:5000", id="with their port"),
        pytest.param({"url": "https://mirror:1/"}, "https://mirror:1", id="unless a url is given"),
    ],
)
def test_the_upstream_url_follows_from_the_host(changes: dict[str, str], url: str) -> None:
    upstream = {"host": "docker.io", **changes}
    assert PullThroughCache.parse(raw(**{"spec.upstream": upstream})).upstream_url == url


def test_series_v2_has_its_ttl_built_in() -> None:
    for ttl in ("168h", "10080m"):
        v2 = PullThroughCache.parse(raw(**{"spec.registry.series": "v2", "spec.gc.ttl": ttl}))
        assert v2.ttl == "168h"
    assert PullThroughCache.parse(raw(**{"spec.gc.ttl": "1h"})).ttl == "1h"


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"spec.gc.ttl": "7d"}, "spec.gc.ttl: '7d'", "168h"),
        ({"spec.gc.ttl": "59s"}, "spec.gc.ttl: '59s'", "at least 1m"),
        ({"spec.gc.ttl": 3600}, "spec.gc.ttl: 3600", "kubectl explain"),
        ({"spec.gc.spread": "85h"}, "spec.gc.spread: '85h'", "at most half of gc.ttl"),
        ({"spec.gc.mode": "On"}, "spec.gc.mode: 'On'", "'Enabled' or 'Disabled'"),
        ({"spec.gc": "on"}, "spec.gc: 'on'", "kubectl explain"),
        ({"spec.upstream.host": "Docker.io"}, "spec.upstream.host: 'Docker.io'", "lower-case"),
        ({"spec.upstream.host": "https://x"}, "spec.upstream.host: 'https://x'", "without scheme"),
        ({"spec.upstream": {}}, "spec.upstream.host", "add it"),
        ({"spec.upstream.url": "http://m"}, "spec.upstream.url: 'http://m'", "insecure: true"),
        ({"spec.upstream.url": "https://m/v2"}, "spec.upstream.url: 'https://m/v2'", "no path"),
        ({"spec.replicas": 33}, "spec.replicas: 33", "between 1 and 32"),
        ({"spec.storage": None}, "spec.storage", "add it"),
        ({"spec.storage.volume": None}, "spec.storage.volume", "add it"),
        ({"spec.storage.volume.size": "0Gi"}, "spec.storage.volume.size: '0Gi'", "50Gi"),
        ({"spec.storage.volume.size": "big"}, "spec.storage.volume.size: 'big'", "50Gi"),
        (
            {"spec.registry.series": "v2", "spec.gc.ttl": "24h"},
            "spec.gc.ttl: '24h'",
            "leave gc.ttl at 168h",
        ),
        (
            {"spec.podTemplate.labels": {"app.kubernetes.io/name": "x"}},
            "spec.podTemplate.labels",
            "a prefix of your own",
        ),
        (
            {"spec.podTemplate.annotations": {"pullthrough.dev/x": "x"}},
            "spec.podTemplate.annotations",
            "a prefix of your own",
        ),
        (
            {"spec.podTemplate.resources.limits": {"memory": "lots"}},
            "spec.podTemplate.resources.limits.memory: 'lots'",
            "512Mi",
        ),
        ({"metadata.name": "9lives"}, "metadata.name: '9lives'", "starts with a letter"),
        ({"metadata.name": "a" * 41}, f"metadata.name: '{'a' * 41}'", "at most 40"),
        ({"spec": None}, "spec", "kubectl explain"),
    ],
)
def test_a_wrong_resource_is_refused_with_field_value_and_remedy(
    changes: dict[str, Any], field: str, remedy: str
) -> None:
    said = refusal(**changes)
    assert said.startswith(field), said
    assert remedy in said


def test_models_cannot_be_changed() -> None:
    read = PullThroughCache.parse(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        read.spec.gc.ttl = "1h"  # type: ignore[misc]


@given(st.from_regex(fields.DURATION_PATTERN, fullmatch=True).filter(lambda text: len(text) <= 20))
def test_every_duration_that_the_schema_admits_is_a_go_duration(text: str) -> None:
    assert durations.parse_go(text).total_seconds() >= 0
