"""Small helpers of the tests against a real API server: objects, a client, waiting."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pullthrough.cluster.client import AlreadyExists, Conflict, KubeClient, NotFound, Raw
from pullthrough.models import constants

T = TypeVar("T")


def with_client(server: Any, work: Callable[[KubeClient], Awaitable[T]]) -> T:
    """Run `work` with a client of that API server, in a loop of its own."""
    os.environ["KUBECONFIG"] = str(server.kubeconfig)

    async def run() -> T:
        async with KubeClient() as kube:
            return await work(kube)

    return asyncio.run(run())


async def new_namespace(kube: KubeClient) -> str:
    """A namespace of its own for each test."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await kube.request("POST", "/api/v1/namespaces", body=body)
    return name


def labels(cache: str = "c") -> dict[str, str]:
    return {
        constants.LABEL_MANAGED_BY: constants.FIELD_MANAGER,
        constants.LABEL_CACHE: cache,
        constants.LABEL_MEMBER: "0",
    }


def config_map(namespace: str, name: str = "c-config", **data: str) -> Raw:
    meta = {"namespace": namespace, "name": name, "labels": labels()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def service(namespace: str, name: str = "c", **spec: Any) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": labels()},
        "spec": {"selector": labels(), "ports": [{"name": "registry", "port": 5000}], **spec},
    }


def claim(namespace: str, name: str = "c-0", size: str = "1Gi") -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": namespace, "name": name, "labels": labels()},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        },
    }


def stateful_set(namespace: str, name: str = "c-0", **pod: Any) -> Raw:
    container = {"name": "registry", "image": "registry:3.1.2"}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"namespace": namespace, "name": name, "labels": labels()},
        "spec": {
            "replicas": 1,
            "serviceName": name,
            "selector": {"matchLabels": labels()},
            "template": {
                "metadata": {"labels": labels()},
                "spec": {"containers": [container], **pod},
            },
        },
    }


async def steal_lease(kube: KubeClient, namespace: str, name: str) -> None:
    """Write another holder into it, between two renewals."""
    while True:
        live = await kube.get("Lease", namespace, name)
        assert live is not None
        about = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        spec = {**live["spec"], "holderIdentity": "thief", "leaseDurationSeconds": 1}
        try:
            await kube.replace({**live, **about, "spec": spec})
        except Conflict:
            continue
        return


def until(what: str, check: Callable[[], T | None], seconds: float = 20.0) -> T:
    """Poll until `check` gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.05)
    msg = f"gave up after {seconds:g} s waiting until {what}"
    raise AssertionError(msg)


ROOT = Path(__file__).resolve().parents[2]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


async def install_crd(kube: KubeClient) -> None:
    """The generated CRD; more than one test file may have done it already."""
    body = yaml.safe_load((ROOT / "crds" / "pullthroughcaches.pullthrough.dev.yaml").read_text())
    try:
        await kube.request("POST", CRDS, body=body)
    except AlreadyExists:
        pass
    for _ in range(200):
        try:
            await kube.list_all(constants.KIND)
        except NotFound:
            await asyncio.sleep(0.05)
        else:
            return
    msg = "the CRD was not established"
    raise AssertionError(msg)


def cache(namespace: str, name: str = "c", **spec: Any) -> Raw:
    return {
        "apiVersion": constants.API_VERSION,
        "kind": constants.KIND,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "upstream": {"host": "docker.io"},
            "gc": {"mode": "Disabled"},
            "storage": {"volume": {"size": "1Gi"}},
            **spec,
        },
    }
