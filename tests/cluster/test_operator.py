"""The whole operator as a process, on an API server alone: nothing runs pods, so every cache stays on its way.

The process may do exactly what the chart's roles grant. What contributes: what exists when it starts · what
others do to its objects · who holds the Lease · whether the API server answers.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import apiserver, programs
from pullthrough.cluster import client
from pullthrough.cluster.client import CHILDREN, MANAGED, KubeClient, Raw
from pullthrough.models import constants
from tests.cluster import edge

pytestmark = pytest.mark.apiserver

SYSTEM = "pullthrough-system"
USER = "operator"
NAME = "pullthrough"
"""Of the chart's release, and so of its roles."""
KINDS_OF_A_CACHE = {"StatefulSet", "Service", "ConfigMap", "PersistentVolumeClaim"}


def rules() -> tuple[list[Raw], list[Raw]]:
    """What the chart grants the operator: the rules of its ClusterRole and of its Role."""
    helm = programs.ensure("helm")["helm"]
    chart = edge.ROOT / "charts" / "pullthrough"
    command = [str(helm), "template", NAME, str(chart), "-n", SYSTEM, "--kube-version", "1.34.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    roles = {
        manifest["kind"]: manifest["rules"]
        for manifest in yaml.safe_load_all(done.stdout)
        if manifest and manifest["kind"].endswith("Role") and manifest["metadata"]["name"] == NAME
    }
    return roles["ClusterRole"], roles["Role"]


async def prepare(kube: KubeClient) -> None:
    """Namespace, CRD, and the chart's roles bound to a user of its own."""
    await edge.install_crd(kube)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    await kube.request("POST", "/api/v1/namespaces", body=namespace)
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    everywhere, at_home = rules()
    for prefix, path, own in (
        ("Cluster", rbac, everywhere),
        ("", f"{rbac}/namespaces/{SYSTEM}", at_home),
    ):
        kind, plural = f"{prefix}Role", f"{prefix.lower()}role"
        about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": USER}}
        role = {**about, "kind": kind, "rules": own}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}
        role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": USER}
        binding = {**about, "kind": f"{kind}Binding", "subjects": [subject], "roleRef": role_ref}
        await kube.request("POST", f"{path}/{plural}s", body=role)
        await kube.request("POST", f"{path}/{plural}bindings", body=binding)


class World:
    """The API server, and what one can ask it as its administrator."""

    def __init__(self, server: Any, operators_kubeconfig: Path) -> None:
        self.server, self.operators_kubeconfig = server, operators_kubeconfig

    def ask(self, work: Callable[[KubeClient], Any]) -> Any:
        return edge.with_client(self.server, work)

    def get(self, kind: str, namespace: str, name: str) -> Any:
        return self.ask(lambda kube: kube.get(kind, namespace, name))

    def ours(self, namespace: str) -> dict[tuple[str, str], Raw]:
        async def work(kube: KubeClient) -> dict[tuple[str, str], Raw]:
            found = [
                one
                for kind in CHILDREN
                for one in await kube.list_all(kind, MANAGED)
                if one["metadata"]["namespace"] == namespace
            ]
            return {(one["kind"], one["metadata"]["name"]): one for one in found}

        return dict(self.ask(work))

    def new_cache(self, **spec: Any) -> str:
        """A cache `c` in a namespace of its own; the namespace."""

        async def work(kube: KubeClient) -> str:
            namespace = await edge.new_namespace(kube)
            await kube.create(edge.cache(namespace, **spec))
            return namespace

        return str(self.ask(work))

    def until_made(self, namespace: str) -> dict[tuple[str, str], Raw]:
        """All children of a cache, once they are there and the status has been written."""

        def made() -> dict[tuple[str, str], Raw] | None:
            status = self.get(constants.KIND, namespace, "c").get("status") or {}
            children = self.ours(namespace)
            is_made = {kind for kind, _ in children} >= KINDS_OF_A_CACHE
            return children if is_made and status.get("conditions") else None

        return edge.until("the children are there", made)

    def condition(self, namespace: str, kind: str) -> Any:
        status = self.get(constants.KIND, namespace, "c").get("status") or {}
        found = [one for one in status.get("conditions") or () if one["type"] == kind]
        return found[0] if found else None

    def holder(self) -> str:
        live = self.get("Lease", SYSTEM, "pullthrough-operator")
        return str(live["spec"].get("holderIdentity") or "") if live else ""


class Operator:
    """One process."""

    def __init__(self, world: World, log: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = log
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PULLTHROUGH_")}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pullthrough", "run", "--verbose"],
                env={
                    **inherited,
                    "PYTHONPATH": str(edge.ROOT / "operator"),
                    "KUBECONFIG": str(world.operators_kubeconfig),
                    "PULLTHROUGH_IMAGE": "localhost/pullthrough:test",
                    "PULLTHROUGH_NAMESPACE": SYSTEM,
                    "PULLTHROUGH_LISTEN": f"127.0.0.1:{self.port}",
                    **environment,
                },
                stdout=out,
                stderr=out,
            )

    def log(self) -> str:
        return self._log.read_text()

    def ask(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def metric(self, name: str) -> float:
        for line in self.ask("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return -1.0

    def until_leading(self, seconds: float = 20.0) -> None:
        edge.until("it leads", lambda: self.metric("pullthrough_leader") == 1.0, seconds)

    def until_settled(self) -> None:
        """Every cache had a pass, and nothing has been written for a while."""

        def settled() -> bool:
            if self.metric("pullthrough_caches") < 0 or "fleet listed" not in self.log():
                return False
            before = self.metric("pullthrough_api_writes")
            time.sleep(1.0)
            is_idle = self.metric("pullthrough_queue_depth") == 0
            return is_idle and self.metric("pullthrough_api_writes") == before

        edge.until("it has settled", settled, 60.0)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def world(api_server: Any) -> Iterator[World]:
    """An API server that no other test file shares: this operator looks after the whole cluster.

    The shared one is asked for all the same: it skips where none can run.
    """
    with apiserver.running() as server:
        kubeconfig = server.add_identity(USER)
        server.restart()
        edge.with_client(server, prepare)
        yield World(server, kubeconfig)


@contextmanager
def running(world: World, log: Path, **environment: str) -> Iterator[Operator]:
    operator = Operator(world, log, **environment)
    try:
        yield operator
    except BaseException:
        print(operator.log())
        raise
    finally:
        if operator.process.poll() is None:
            operator.stop()


def versions(world: World, namespace: str) -> dict[tuple[str, str], str]:
    cache = world.get(constants.KIND, namespace, "c")
    everything = {**world.ours(namespace), (constants.KIND, "c"): cache}
    return {one: obj["metadata"]["resourceVersion"] for one, obj in everything.items()}


def test_a_new_cache_gets_its_children_and_a_restart_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    before_start = world.new_cache()
    with running(world, tmp_path / "first") as operator:
        operator.until_leading()
        world.until_made(before_start)
        namespace = world.new_cache(gc={"mode": "Enabled", "ttl": "1h"})
        children = world.until_made(namespace)
        assert set(children) >= {("StatefulSet", "c-0"), ("Service", "c"), ("Service", "c-0")}
        assert set(children) >= {("PersistentVolumeClaim", "c-0")}
        operator.until_settled()
        assert operator.ask("/readyz") == operator.ask("/healthz") == "ok\n"
        assert operator.stop() == 0
        assert "Traceback" not in operator.log()
    before = {one: versions(world, one) for one in (before_start, namespace)}
    with running(world, tmp_path / "second") as operator:
        operator.until_leading()
        operator.until_settled()
        assert operator.metric("pullthrough_caches") >= 2
        assert operator.metric('pullthrough_reconcile_total{outcome="done"}') >= 2
        assert operator.metric("pullthrough_api_writes") == 0
        assert before == {one: versions(world, one) for one in before}


@pytest.mark.parametrize(
    ("kind", "name"), [("StatefulSet", "c-0"), ("Service", "c"), ("Service", "c-0")]
)
def test_a_child_deleted_by_hand_is_made_again(
    world: World, tmp_path: Path, kind: str, name: str
) -> None:
    with running(world, tmp_path / "log"):
        namespace = world.new_cache()
        before = world.until_made(namespace)[kind, name]["metadata"]["uid"]
        world.ask(lambda kube: kube.delete(kind, namespace, name, uid=before))

        def made_again() -> bool:
            live = world.get(kind, namespace, name)
            return live is not None and live["metadata"]["uid"] != before

        edge.until("it is made again", made_again)


def test_a_configuration_deleted_by_hand_is_made_again(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path / "log"):
        namespace = world.new_cache()
        children = world.until_made(namespace)
        (name,) = [name for kind, name in children if kind == "ConfigMap"]
        before = children["ConfigMap", name]
        uid = before["metadata"]["uid"]
        world.ask(lambda kube: kube.delete("ConfigMap", namespace, name, uid=uid))
        edge.until("it is made again", lambda: world.get("ConfigMap", namespace, name))
        assert world.get("ConfigMap", namespace, name)["data"] == before["data"]


def test_a_port_changed_by_hand_is_put_back(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path / "log"):
        namespace = world.new_cache()
        world.until_made(namespace)
        path = f"/api/v1/namespaces/{namespace}/services/c"
        change = [{"op": "replace", "path": "/spec/ports/0/port", "value": 80}]
        kind = "application/json-patch+json"
        world.ask(lambda kube: kube.request("PATCH", path, body=change, content_type=kind))

        def put_back() -> bool:
            ports = world.get("Service", namespace, "c")["spec"]["ports"]
            return [port["port"] for port in ports] == [5000]

        edge.until("it is put back", put_back)


def test_a_label_taken_off_a_child_by_hand_is_put_back(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path / "log"):
        namespace = world.new_cache()
        world.until_made(namespace)
        path = f"/api/v1/namespaces/{namespace}/services/c"
        change = {"metadata": {"labels": {constants.LABEL_MANAGED_BY: None}}}
        kind = "application/merge-patch+json"
        world.ask(lambda kube: kube.request("PATCH", path, body=change, content_type=kind))
        edge.until("it is put back", lambda: ("Service", "c") in world.ours(namespace))


def test_a_larger_size_reaches_the_claim_with_its_storage_class_kept(
    world: World, tmp_path: Path
) -> None:
    async def grow(kube: KubeClient) -> None:
        path = client.KINDS[constants.KIND].path(namespace, "c")
        change = {"spec": {"storage": {"volume": {"size": "2Gi"}}}}
        kind = "application/merge-patch+json"
        await kube.request("PATCH", path, body=change, content_type=kind)

    async def bind(kube: KubeClient) -> None:
        """As the controllers would: only a bound claim may grow, and only of a class that allows it."""
        storage = "/apis/storage.k8s.io/v1/storageclasses"
        about = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}
        body = {**about, "metadata": {"name": "fast"}, "provisioner": "example.com/none"}
        await kube.request("POST", storage, body={**body, "allowVolumeExpansion": True})

    async def bound(kube: KubeClient) -> None:
        path = client.KINDS["PersistentVolumeClaim"].path(namespace, "c-0")
        kind = "application/merge-patch+json"
        volume = {"spec": {"volumeName": "v"}}
        await kube.request("PATCH", path, body=volume, content_type=kind)
        status = {"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}
        await kube.request("PATCH", f"{path}/status", body=status, content_type=kind)

    world.ask(bind)
    with running(world, tmp_path / "log") as operator:
        volume = {"size": "1Gi", "storageClassName": "fast"}
        namespace = world.new_cache(storage={"volume": volume})
        world.until_made(namespace)
        world.ask(bound)
        world.ask(grow)

        def grown() -> bool:
            spec = world.get("PersistentVolumeClaim", namespace, "c-0")["spec"]
            is_large = spec["resources"]["requests"]["storage"] == "2Gi"
            return is_large and spec["storageClassName"] == "fast"

        edge.until("the claim has grown", grown)
        assert "Refused" not in operator.log()


def test_a_foreign_object_of_our_name_is_never_touched_and_the_cache_is_stalled(
    world: World, tmp_path: Path
) -> None:
    async def foreign(kube: KubeClient) -> tuple[str, Raw]:
        namespace = await edge.new_namespace(kube)
        mine = edge.service(namespace)
        mine["metadata"].pop("labels")
        before = await kube.create(mine)
        await kube.create(edge.cache(namespace))
        return namespace, before

    with running(world, tmp_path / "log") as operator:
        namespace, before = world.ask(foreign)
        stalled = edge.until("it stalls", lambda: world.condition(namespace, "Stalled"))
        assert (stalled["status"], stalled["reason"]) == ("True", "NameConflict")
        assert "c" in stalled["message"]
        operator.until_settled()
        assert world.get("Service", namespace, "c") == before


def test_a_deleted_cache_is_left_to_the_garbage_collector(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path / "log") as operator:
        namespace = world.new_cache()
        children = world.until_made(namespace)
        operator.until_settled()
        uid = world.get(constants.KIND, namespace, "c")["metadata"]["uid"]
        writes = operator.metric("pullthrough_api_writes")
        world.ask(lambda kube: kube.delete(constants.KIND, namespace, "c", uid=uid))
        operator.until_settled()
        assert operator.metric("pullthrough_api_writes") == writes
        for (kind, _), child in children.items():
            owners = child["metadata"].get("ownerReferences", [])
            expected = [] if kind == "PersistentVolumeClaim" else [uid]
            assert [owner["uid"] for owner in owners] == expected


def test_a_stolen_lease_ends_the_process_with_exit_code_1(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path / "log") as operator:
        operator.until_leading()
        world.ask(lambda kube: edge.steal_lease(kube, SYSTEM, "pullthrough-operator"))
        assert operator.process.wait(10) == 1
        assert "lease lost" in operator.log()
        assert world.holder() == "thief"


def test_a_standby_is_ready_and_takes_over_when_the_leader_stops_or_is_killed(
    world: World, tmp_path: Path
) -> None:
    with running(world, tmp_path / "one") as one:
        one.until_leading()
        with running(world, tmp_path / "two") as two:
            edge.until("the standby is ready", lambda: two.ask("/readyz") == "ok\n")
            assert two.metric("pullthrough_leader") == 0.0
            assert one.stop() == 0
            started = time.monotonic()
            two.until_leading()
            assert time.monotonic() - started < 5, "released, not waited for"
            with running(world, tmp_path / "three") as three:
                edge.until("the standby is ready", lambda: three.ask("/readyz") == "ok\n")
                two.process.kill()
                two.process.wait()
                three.until_leading(30.0)
                namespace = world.new_cache()
                world.until_made(namespace)


def test_a_short_outage_of_the_api_server_is_survived(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path / "log") as operator:
        operator.until_leading()
        namespace = world.new_cache()
        uid = world.until_made(namespace)["Service", "c"]["metadata"]["uid"]
        world.server.stop_serving()
        world.server.restart()
        world.ask(lambda kube: kube.delete("Service", namespace, "c", uid=uid))
        edge.until("it is made again", lambda: world.get("Service", namespace, "c"), 60.0)
        assert operator.process.poll() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PULLTHROUGH_IMAGE", ""),
        ("PULLTHROUGH_NAMESPACE", ""),
        ("PULLTHROUGH_KEEPER_MINIMUM_AGE", "1d"),
        ("PULLTHROUGH_LISTEN", "8080x"),
    ],
)
def test_a_wrong_setting_ends_the_process_with_exit_code_2_and_is_named(
    world: World, tmp_path: Path, name: str, value: str
) -> None:
    with running(world, tmp_path / "log", **{name: value}) as operator:
        assert operator.process.wait(20) == 2
        (line,) = operator.log().splitlines()
        assert line.startswith(f"pullthrough run: {name} is ")
