"""What demo and stories stand on: a cluster with our operator, an upstream full of images, caches and their volumes.

Everything is done as a user would do it: helm, kubectl, pulls over HTTP. What lies on a volume is counted by a script
of its own that knows only the registry's file layout, so that no figure rests on the code under test.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml

from e2e.cluster import Cluster, Unavailable, images, programs
from e2e.cluster.commands import run
from tests import images as content

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "pullthrough-system"
RELEASE = "pullthrough"
DEFINITION = "pullthroughcaches.pullthrough.dev"
VERSIONS = {"v3": "3.1.2", "v2": "2.8.2"}
"""Registries under test, by series."""
KEEPER_PORT = 5002
SHORT_KEEPER = {
    "sweepInterval": "5s",
    "minimumAge": "5s",
    "uploadAge": "1m",
    "dataDelay": "2s",
    "stateInterval": "5s",
    "backstopMargin": "10s",
    "probeInterval": "5s",
}
"""Ages short enough to watch. The defaults (chart values) are the safe ones."""

COUNT = """
import json, os, sys
root = sys.argv[1]
out = {"blobs": 0, "bytes": 0, "links": 0, "revisions": 0, "tags": 0, "state": None, "uncovered": 0}
try: state = json.load(open(os.path.join(root, "scheduler-state.json")))
except Exception as error: state = None
repositories = os.path.join(root, "docker", "registry", "v2", "repositories")
for base, _, files in os.walk(os.path.join(root, "docker", "registry", "v2")):
    if "/pullthrough.dev/canary" in base: continue
    for name in files:
        path = os.path.join(base, name)
        try: size = os.path.getsize(path)
        except FileNotFoundError: continue
        if name == "data" and "/blobs/" in base: out["blobs"] += 1; out["bytes"] += size
        elif name == "link" and "/_manifests/tags/" in base: out["tags"] += 1
        elif name == "link":
            layers = "/_layers/" in base
            out["links" if layers else "revisions"] += 1
            repository = base.split("/_layers/" if layers else "/_manifests/")[0][len(repositories) + 1:]
            algorithm, digest = base.split("/")[-2:]
            out["uncovered"] += f"{repository}@{algorithm}:{digest}" not in (state or {})
if state is not None: out["state"] = len(state)
print(json.dumps(out))
"""


class StoryFailed(AssertionError):
    """Something that had to happen did not; the message says what was waited for and what was there instead."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What lies on a registry's volume."""

    blobs: int
    bytes: int
    links: int
    revisions: int
    tags: int
    state: int | None
    """Entries in scheduler-state.json; None: no readable file."""
    uncovered: int
    """Links whose key has no entry there: what would stay for ever."""

    @property
    def artifacts(self) -> int:
        return self.links + self.revisions


class Kubectl:
    """kubectl against one cluster; every call has a deadline."""

    def __init__(self, kubeconfig: Path, binary: Path) -> None:
        self.kubeconfig = kubeconfig
        self.binary = binary

    def run(
        self, *args: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> str:
        done = run(
            [self.binary, f"--kubeconfig={self.kubeconfig}", *args],
            f"kubectl {' '.join(args)}",
            within=timeout,
            check=check,
            error=StoryFailed,
            stdin=stdin,
        )
        return done.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(list(objects)))

    def exists(self, kind: str, name: str) -> bool:
        """Whether there is such an object that is in no namespace."""
        return bool(self.run("get", kind, name, "-o", "name", "--ignore-not-found").strip())

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        text = self.run("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        extra = ["-l", selector] if selector else []
        found: list[dict[str, Any]] = json.loads(
            self.run("get", kind, "-n", namespace, "-o", "json", *extra)
        )["items"]
        return found

    def patch(self, kind: str, name: str, namespace: str, change: Mapping[str, Any]) -> None:
        self.run("patch", kind, name, "-n", namespace, "--type=merge", "-p", json.dumps(change))

    def delete(self, kind: str, name: str, namespace: str, *args: str) -> None:
        self.run("delete", kind, name, "-n", namespace, "--ignore-not-found", *args, timeout=180)


def eventually(
    what: str,
    look: Callable[[], T | None],
    *,
    within: float = 120,
    every: float = 0.5,
    saw: Callable[[], object] | None = None,
) -> T:
    """The first truthy answer of `look`; StoryFailed with what was there instead after `within` seconds."""
    deadline = time.monotonic() + within
    last: object = None
    while time.monotonic() < deadline:
        last = look()
        if last:
            return last
        time.sleep(every)
    msg = f"waited {within:.0f} s for {what}; last seen: {saw() if saw else last!r}"
    raise StoryFailed(msg)


class Scene:
    """One cluster with the operator in it."""

    def __init__(self, cluster: Cluster) -> None:
        built = programs.ensure("kubectl", "helm")
        self.cluster = cluster
        self.kubectl = Kubectl(cluster.kubeconfig, built["kubectl"])
        self.helm = built["helm"]
        self.operator_image = images.operator_image()
        self._registry_images: dict[str, str] = {}
        self._to_remove: list[tuple[str, str]] = []
        self._namespaces: list[str] = []

    # -- operator ----------------------------------------------------------------------------------------------------

    def install_operator(self, keeper: Mapping[str, str] = SHORT_KEEPER) -> None:
        """`helm upgrade --install` of our chart with the images built here; waits until it is ready."""
        self._note_what_will_be_ours()
        self.cluster.load_image(self.operator_image.archive)
        repository, _, tag = self.operator_image.reference.rpartition(":")
        values = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
            "registryImages": {"v3": self.registry_image("v3")},
            "keeper": dict(keeper),
        }
        chart = str(ROOT / "charts" / "pullthrough")
        self._helm(
            "installing the operator",
            *("upgrade", "--install", RELEASE, chart, "--create-namespace", "--wait"),
            *("--timeout=120s", "-f", "-"),
            stdin=yaml.safe_dump(values),
        )

    def leave(self) -> None:
        """Remove all that was made here from a cluster that outlives the run; what was there before stays."""
        if not self.cluster.outlives_the_run:
            return
        if self._namespaces:
            self.kubectl.run(
                *("delete", "namespace", *self._namespaces, "--ignore-not-found"),
                "--timeout=180s",
                timeout=200,
            )
        if not self._to_remove:
            return
        self._helm(
            "uninstalling the operator",
            *("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout=120s"),
        )
        for kind, name in self._to_remove:
            self.kubectl.run(
                *("delete", kind, name, "--ignore-not-found", "--timeout=120s"), timeout=130
            )

    def _note_what_will_be_ours(self) -> None:
        """The chart leaves its CRD, and Helm the namespace, when it is uninstalled."""
        lasting = [("customresourcedefinition", DEFINITION), ("namespace", NAMESPACE)]
        there = [each for each in lasting if self.kubectl.exists(*each)]
        if there and not self.cluster.is_here:
            found = " and ".join(" ".join(each) for each in there)
            msg = f"this cluster has {found}: somebody's caches are not played with"
            raise Unavailable(msg)
        self._to_remove += [each for each in lasting if each not in (*there, *self._to_remove)]

    def _helm(self, doing: str, *args: str, stdin: str | None = None) -> None:
        run(
            [self.helm, f"--kubeconfig={self.cluster.kubeconfig}", "-n", NAMESPACE, *args],
            doing,
            within=180,
            error=StoryFailed,
            stdin=stdin,
        )

    def registry_image(self, series: str) -> str:
        """The reference of a registry's image; built and given to the node when it is first asked for."""
        if series not in self._registry_images:
            image = images.registry_image(VERSIONS[series])
            self.cluster.load_image(image.archive)
            self._registry_images[series] = image.reference
        return self._registry_images[series]

    def operator_pod(self) -> dict[str, Any]:
        """The one that is not on its way out."""

        def look() -> dict[str, Any] | None:
            pods = self.kubectl.list("pods", NAMESPACE)
            staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
            return staying[0] if staying else None

        return eventually("an operator pod", look)

    def delete_operator_pod(self, *args: str) -> None:
        """Its Deployment makes another; with --force and no grace it goes as with its node."""
        name = self.operator_pod()["metadata"]["name"]
        self.kubectl.delete("pod", name, NAMESPACE, *args)

    # -- namespaces, upstream, plain registry ------------------------------------------------------------------------

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        if not self.cluster.is_here and self.kubectl.exists("namespace", name):
            msg = f"this cluster has a namespace {name}, which is not ours"
            raise StoryFailed(msg)
        self.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": name,
                    "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
                },
            }
        )
        self._namespaces.append(name)
        try:
            yield name
        finally:
            if not os.environ.get("KEEP"):
                self.kubectl.run("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    def upstream(self, namespace: str, name: str = "upstream") -> str:
        """A plain registry 3.1.2 to pull from; returns its address as seen from the host."""
        config = "version: 0.1\nstorage: {filesystem: {rootdirectory: /data}}\nhttp: {addr: ':5000'}\nlog: {level: warn}\n"
        self._registry(namespace, name, config, volume={"name": "data", "emptyDir": {}})
        return self.address(namespace, name)

    def plain_cache(self, namespace: str, name: str, upstream: str, *, ttl: str) -> str:
        """The control: a pull-through cache without us, on a claim of its own. Call again to switch its ttl by hand."""
        delete = "true" if ttl != "0" else "false"
        config = (
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: /data}}, delete: {{enabled: {delete}}}}}\n"
            f"http: {{addr: ':5000', draintimeout: 5s}}\nproxy: {{remoteurl: '{upstream}', ttl: {ttl}}}\nlog: {{level: warn}}\n"
        )
        self.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        )
        self._registry(
            namespace,
            name,
            config,
            volume={"name": "data", "persistentVolumeClaim": {"claimName": name}},
        )
        return self.address(namespace, name)

    def _registry(self, namespace: str, name: str, config: str, volume: Mapping[str, Any]) -> None:
        labels = {"app": name}
        meta = {"name": name, "namespace": namespace}
        self.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta,
                "data": {"config.yml": config},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {"selector": labels, "ports": [{"port": 5000}]},
            },
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": meta,
                "spec": {
                    "replicas": 1,
                    "strategy": {"type": "Recreate"},
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {
                            "labels": labels,
                            "annotations": {"config": str(hash(config))},
                        },
                        "spec": {
                            "enableServiceLinks": False,
                            "automountServiceAccountToken": False,
                            "terminationGracePeriodSeconds": 10,
                            "securityContext": _pod_security(),
                            "containers": [
                                {
                                    "name": "registry",
                                    "image": self.registry_image("v3"),
                                    "imagePullPolicy": "IfNotPresent",
                                    "args": ["serve", "/config/config.yml"],
                                    "securityContext": _container_security(),
                                    "env": [{"name": "OTEL_TRACES_EXPORTER", "value": "none"}],
                                    "readinessProbe": {
                                        "httpGet": {"path": "/v2/", "port": 5000},
                                        "periodSeconds": 1,
                                    },
                                    "volumeMounts": [
                                        {"name": "data", "mountPath": "/data"},
                                        {"name": "config", "mountPath": "/config"},
                                    ],
                                }
                            ],
                            "volumes": [volume, {"name": "config", "configMap": {"name": name}}],
                        },
                    },
                },
            },
        )
        self.kubectl.run(
            "rollout",
            "status",
            f"deployment/{name}",
            "-n",
            namespace,
            "--timeout=120s",
            timeout=130,
        )

    def address(self, namespace: str, service: str) -> str:
        found = self.kubectl.get("service", service, namespace)
        if found is None:
            msg = f"no Service {namespace}/{service}"
            raise StoryFailed(msg)
        return f"http://{found['spec']['clusterIP']}:5000"

    @staticmethod
    def reaches(address: str) -> bool:
        """Whether this machine has a way to that Service; a story's pulls come from here."""
        parts = urlsplit(address)
        try:
            with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=5):
                return True
        except OSError:
            return False

    # -- our caches --------------------------------------------------------------------------------------------------

    def cache(self, namespace: str, name: str = "cache", **spec: Any) -> dict[str, Any]:
        """Apply a PullThroughCache of the namespace's upstream; keyword arguments are parts of its spec."""
        body = {
            "apiVersion": "pullthrough.dev/v1alpha1",
            "kind": "PullThroughCache",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "upstream": self.upstream_of(namespace),
                "storage": {"volume": {"size": "1Gi"}},
                **spec,
            },
        }
        self.kubectl.apply(body)
        return body

    @staticmethod
    def upstream_of(namespace: str, name: str = "upstream") -> dict[str, Any]:
        host = f"{name}.{namespace}.svc:5000"
        return {"host": host, "url": f"http://{host}", "insecure": True}

    def condition(self, namespace: str, name: str, type_: str) -> dict[str, Any]:
        conditions = self.status(namespace, name).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {})

    def status(self, namespace: str, name: str = "cache") -> dict[str, Any]:
        found = self.kubectl.get("ptc", name, namespace) or {}
        return dict(found.get("status", {}))

    def until_condition(
        self,
        namespace: str,
        name: str,
        type_: str,
        status: str,
        *,
        reason: str | None = None,
        within: float = 120,
    ) -> dict[str, Any]:
        """Waits for the condition, on the generation that is there now."""

        def look() -> dict[str, Any] | None:
            found = self.kubectl.get("ptc", name, namespace) or {}
            if found.get("status", {}).get("observedGeneration") != found.get("metadata", {}).get(
                "generation"
            ):
                return None
            for c in found.get("status", {}).get("conditions", []):
                if c["type"] == type_ and c["status"] == status and reason in (None, c["reason"]):
                    return dict(c)
            return None

        wanted = f"{namespace}/{name} {type_}={status}" + (f" ({reason})" if reason else "")
        return eventually(wanted, look, within=within, saw=lambda: self.status(namespace, name))

    def until_ready(self, namespace: str, name: str = "cache", within: float = 120) -> None:
        self.until_condition(namespace, name, "Ready", "True", within=within)

    def until_gc(
        self, namespace: str, name: str = "cache", mode: str = "Enabled", within: float = 180
    ) -> None:
        """The member's pod runs in this mode and is ready, and nothing is under way."""

        def look() -> bool:
            pod = self.member_pod(namespace, name)
            return bool(
                pod
                and is_ready(pod)
                and pod["metadata"]["annotations"].get("pullthrough.dev/gc-mode") == mode
                and self.condition(namespace, name, "Migrating").get("status") == "False"
                and self.condition(namespace, name, "Ready").get("status") == "True"
            )

        eventually(
            f"{namespace}/{name} serving with gc {mode}",
            look,
            within=within,
            saw=lambda: self.status(namespace, name),
        )

    def member_pod(
        self, namespace: str, name: str = "cache", member: int = 0
    ) -> dict[str, Any] | None:
        return self.kubectl.get("pod", f"{name}-{member}-0", namespace)

    def plain_restart(
        self, namespace: str, name: str, address: str, references: Sequence[str]
    ) -> float:
        """Delete the member's pod; seconds without service until a pull succeeds again, as any change of a registry costs.

        What else a registry is restarted for is compared with this, in the same run: absolute times are the machine's.
        """
        pod = self.member_pod(namespace, name)
        if pod is None:
            msg = f"{name} has no pod to restart"
            raise StoryFailed(msg)
        with content.PullLoop(address, references) as loop:
            self.kubectl.delete("pod", pod["metadata"]["name"], namespace)
            self.until_another_pod(namespace, name, pod["metadata"]["uid"])
            loop.until_good(60)
        return loop.longest_gap

    def until_another_pod(self, namespace: str, name: str, than_uid: str) -> None:
        """Waits until the member has a pod that is ready and not that one."""

        def look() -> bool:
            pod = self.member_pod(namespace, name)
            return pod is not None and pod["metadata"]["uid"] != than_uid and is_ready(pod)

        eventually(f"another pod of {namespace}/{name} to be ready", look)

    def keeper_report(self, namespace: str, name: str = "cache") -> dict[str, Any]:
        """What the keeper beside the member's registry says, asked by way of the API server."""
        pod = f"{name}-0-0:{KEEPER_PORT}"
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/proxy/report"
        said: dict[str, Any] = json.loads(self.kubectl.run("get", "--raw", path))
        return said

    def until_canary_passed(self, namespace: str, name: str = "cache") -> None:
        """Waits until the planted artifact is gone, link and data: the proof that this registry deletes what expires."""

        def look() -> bool:
            canary = self.keeper_report(namespace, name)["canary"]
            if canary not in {"Pending", "Passed"}:
                msg = f"the canary of {namespace}/{name} is {canary}"
                raise StoryFailed(msg)
            return bool(canary == "Passed")

        eventually(f"the canary of {namespace}/{name} to pass", look, within=90)

    def jobs(self, namespace: str) -> list[dict[str, Any]]:
        return self.kubectl.list("jobs", namespace, "pullthrough.dev/cache")

    # -- volumes -----------------------------------------------------------------------------------------------------

    def count(self, namespace: str, claim: str) -> Counted:
        """What lies on a claim, counted by a script that knows only the registry's layout."""
        return Counted(
            **json.loads(self.on_volume(namespace, claim, "python3", "-c", COUNT, "/data"))
        )

    def on_volume(self, namespace: str, claim: str, *argv: str, check: bool = True) -> str:
        """Run a command in a pod that has the claim at /data, read-only: one that could write would stall the cache."""
        pod = f"look-{claim}"
        if self.kubectl.get("pod", pod, namespace) is None:
            idle = ("python3", "-c", "import time; time.sleep(7200)")
            self.kubectl.apply(self.pod_with(namespace, pod, claim, *idle, read_only=True))
        self.kubectl.run(
            "wait",
            "--for=condition=Ready",
            f"pod/{pod}",
            "-n",
            namespace,
            "--timeout=90s",
            timeout=100,
        )
        return self.kubectl.run("exec", "-n", namespace, pod, "--", *argv, check=check)

    def pod_with(
        self, namespace: str, name: str, claim: str, *command: str, read_only: bool
    ) -> dict[str, Any]:
        """A pod of somebody's, with the claim at /data."""
        mount = {"name": "data", "mountPath": "/data", "readOnly": read_only}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": _pod_security(),
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "look",
                        "image": self.operator_image.reference,
                        "imagePullPolicy": "IfNotPresent",
                        "command": list(command),
                        "securityContext": _container_security(),
                        "volumeMounts": [mount],
                    }
                ],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
            },
        }


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Ready and not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return any(
        c["type"] == "Ready" and c["status"] == "True"
        for c in pod.get("status", {}).get("conditions", [])
    )


def allowed_gap(restart: float) -> float:
    """How long a pull may fail beside a plain restart of `restart` seconds: half as long again, and what a busy machine adds."""
    return 1.5 * restart + 5


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


__all__ = [
    "Counted",
    "Kubectl",
    "Scene",
    "StoryFailed",
    "allowed_gap",
    "content",
    "eventually",
    "is_ready",
    "parse_time",
]
