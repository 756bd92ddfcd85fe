"""The local cluster does what tests on it rely on, and leaves nothing behind, however it ends.

Traces are looked for by the slot's own name and addresses: another run may have a cluster beside this one.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e import cluster as clusters
from e2e.cluster import cgroups, current, images, local, programs, slots
from e2e.cluster.local import LocalCluster
from e2e.cluster.waiting import until

pytestmark = pytest.mark.cluster

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
SHELL = ["sh", "-c"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for what needs no fresh one."""
    started = start()
    yield started
    started.stop()


def start() -> LocalCluster:
    """A cluster with a shell image; a machine that cannot have one skips, in CI it fails."""
    try:
        return local.start([images.busybox_image().archive])
    except clusters.Unavailable as why:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no local cluster here: {why}")


def test_a_restricted_pod_with_fsgroup_writes_its_volume(cluster: LocalCluster) -> None:
    with namespace(cluster, "volumes") as name:
        apply(
            cluster,
            claim(name, "data", "64Mi"),
            pod(name, "writer", "echo kept >/data/file", "data"),
        )
        wait_for(cluster, name, "pod/writer", "jsonpath={.status.phase}=Succeeded")
        path = cluster.volume_path(name, "data")
        assert path is not None
        assert (path / "file").read_text() == "kept\n"
        assert (path / "file").stat().st_uid == 65532

        kubectl(cluster, "delete", "-n", name, "pod/writer", "pvc/data")
        until("the folder to go with its claim", lambda: not path.exists(), within=30)


def test_without_fsgroup_a_volume_is_roots_alone(cluster: LocalCluster) -> None:
    with namespace(cluster, "no-fsgroup") as name:
        writer = pod(name, "writer", "echo no >/data/file", "data")
        del writer["spec"]["securityContext"]["fsGroup"]
        apply(cluster, claim(name, "data", "64Mi"), writer)
        wait_for(cluster, name, "pod/writer", "jsonpath={.status.phase}=Failed")


def test_a_small_disk_is_full_when_it_is_and_grows_with_its_claim(cluster: LocalCluster) -> None:
    with namespace(cluster, "small") as name:
        fill = "dd if=/dev/zero of=/data/file bs=1M count=12 2>&1"
        apply(
            cluster,
            claim(name, "data", "8Mi", storage_class="local-small"),
            pod(name, "filler", "sleep 600", "data"),
        )
        wait_for(cluster, name, "pod/filler", "condition=Ready")
        said = kubectl(cluster, "exec", "-n", name, "filler", "--", *SHELL, f"{fill} || true")
        assert "No space left on device" in said

        grown = {"spec": {"resources": {"requests": {"storage": "16Mi"}}}}
        kubectl(cluster, "patch", "-n", name, "pvc/data", "-p", json.dumps(grown))
        wait_for(cluster, name, "pvc/data", "jsonpath={.status.capacity.storage}=16Mi")
        assert "No space" not in kubectl(cluster, "exec", "-n", name, "filler", "--", *SHELL, fill)


def test_a_service_is_reached_from_pods_by_name_and_from_this_machine(
    cluster: LocalCluster,
) -> None:
    with namespace(cluster, "services") as name:
        server = pod(name, "server", "echo hello >/tmp/index.html && httpd -f -v -p 8080 -h /tmp")
        ports = [{"port": 80, "targetPort": 8080}]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "server", "namespace": name},
            "spec": {"selector": {"app": "server"}, "ports": ports},
        }
        apply(cluster, server, service, pod(name, "client", "sleep 600"))
        wait_for(cluster, name, "pod/server", "condition=Ready")
        wait_for(cluster, name, "pod/client", "condition=Ready")

        by_name = f"wget -q -O - http://server.{name}.svc.cluster.local/"
        ask = ("exec", "-n", name, "client", "--", *SHELL, f"{by_name} || true")
        until("the answer to a pod", lambda: "hello" in kubectl(cluster, *ask), within=20)
        address = kubectl(
            cluster, "get", "-n", name, "service/server", "-o", "jsonpath={.spec.clusterIP}"
        )
        with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
            assert answer.read() == b"hello\n"
        logs = until(
            "the server's log", lambda: kubectl(cluster, "logs", "-n", name, "server"), within=10
        )
        assert "response:200" in logs


def test_a_name_outside_is_unknown_at_once(cluster: LocalCluster) -> None:
    with namespace(cluster, "outside") as name:
        apply(cluster, pod(name, "client", "nslookup registry.example.org. 2>&1; true"))
        wait_for(cluster, name, "pod/client", "jsonpath={.status.phase}=Succeeded")
        assert "NXDOMAIN" in kubectl(cluster, "logs", "-n", name, "client")


def test_pods_reach_this_machine_where_it_listens_for_them(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("here")
    address = f"{cluster.host_address}:18080"
    server = subprocess.Popen(["busybox", "httpd", "-f", "-p", address, "-h", str(tmp_path)])
    try:
        with namespace(cluster, "host") as name:
            ask = f"wget -q -O - http://{address}/file"
            apply(cluster, pod(name, "client", ask))
            wait_for(cluster, name, "pod/client", "jsonpath={.status.phase}=Succeeded")
            assert "here" in kubectl(cluster, "logs", "-n", name, "client")
    finally:
        server.kill()
        server.wait()


def test_current_is_this_cluster_when_kubeconfig_says_so(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    taken = clusters.start("current")
    assert isinstance(taken, current.CurrentCluster)
    assert taken.node_exec(["ip", "-brief", "address", "show", "node0"]).returncode == 0
    taken.stop()
    assert "node0" in kubectl(cluster, "get", "nodes")


def test_two_stand_beside_each_other_and_one_goes_without_a_trace(cluster: LocalCluster) -> None:
    other = start()
    try:
        with_a_running_pod(other)
        assert other.slot != cluster.slot
        assert other.kubeconfig != cluster.kubeconfig
        assert traces(other), "this test must be able to see a cluster"
    finally:
        began = time.monotonic()
        other.stop()
    assert traces(other) == []
    assert time.monotonic() - began < 20
    assert "Ready" in kubectl(cluster, "get", "nodes")


def test_the_rest_of_a_killed_run_does_not_break_the_next_start() -> None:
    script = (
        "import os, signal; from e2e.cluster import images, local;"
        "c = local.start([images.busybox_image().archive]); print(c.slot.number, flush=True);"
        "signal.pause()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout is not None
    left = LocalCluster(slots.Slot(int(run.stdout.readline())))
    with_a_running_pod(left)
    record = slots.read(left.slot)
    assert record is not None
    assert is_living(left)

    run.kill()
    run.wait()
    # Part of it dies with its owner, part of it stays: both must be borne.
    for process in record.processes[::2]:
        os.kill(process.pid, signal.SIGKILL)
    assert not is_living(left)
    assert traces(left)

    again = start()
    try:
        assert again.slot == left.slot or traces(left) == []
    finally:
        again.stop()
    assert traces(left) == []


# --------------------------------------------------------------------------------------------------------------------


def is_living(cluster: LocalCluster) -> bool:
    return cluster.name in [each.name for each, _ in local.living()]


def with_a_running_pod(cluster: LocalCluster) -> None:
    """What makes stopping hard: sandboxes, mounts of all kinds, a shim."""
    small = claim("default", "data", "8Mi", storage_class="local-small")
    apply(cluster, small, pod("default", "stays", "sleep 600", "data"))
    wait_for(cluster, "default", "pod/stays", "condition=Ready")


def traces(cluster: LocalCluster) -> list[str]:
    """Everything on this machine that is or was part of the cluster."""
    slot = cluster.slot
    prefix = slot.node.rpartition(".")[0] + "."
    found = [line for line in output("ip", "route") if f"dev {slot.name}" in line]
    found += [line for line in output("ip", "netns", "list") if line.split()[0] == slot.name]
    found += [line for line in output("ip", "-brief", "link") if line.startswith(f"{slot.name}@")]
    found += [line for line in output("iptables-save") if prefix in line]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [line for line in mounts if f" {slot.folder}/" in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{slot.name}")]
    found += [f"process {pid}" for pid in cgroups._pids(slot)]
    found += [
        " ".join(argv) for argv in command_lines() if any(f"{slot.folder}/" in a for a in argv)
    ]
    found += [str(path) for path in Path("/var/lib/cni/results").glob(f"{slot.name}-*")]
    found += [
        str(path)
        for path in Path("/var/log/containers").glob("*")
        if f"{slot.folder}/" in str(path.readlink() if path.is_symlink() else path)
    ]
    return found + ([str(slot.folder)] if slot.folder.exists() else [])


def command_lines() -> Iterator[list[str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "cmdline").read_text(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue


def output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


class namespace:
    """A namespace under the strictest Pod Security Standard, gone afterwards."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def __enter__(self) -> str:
        label = {"pod-security.kubernetes.io/enforce": "restricted"}
        meta = {"name": self.name, "labels": label}
        apply(self.cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        account = ("get", "serviceaccount", "default", "-n", self.name, "--ignore-not-found")
        until("the service account", lambda: kubectl(self.cluster, *account), within=20)
        return self.name

    def __exit__(self, *_: object) -> None:
        kubectl(self.cluster, "delete", "namespace", self.name, "--wait=false")


def claim(
    in_namespace: str, name: str, size: str, storage_class: str | None = None
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
    }
    if storage_class:
        spec["storageClassName"] = storage_class
    meta = {"name": name, "namespace": in_namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def pod(in_namespace: str, name: str, script: str, volume: str | None = None) -> dict[str, Any]:
    """A pod that runs as nobody in particular, with a memory limit; `volume` is a claim, at /data."""
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    if volume:
        mounts.append({"name": "data", "mountPath": "/data"})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": volume}})
    container = {
        "name": "main",
        "image": images.busybox_image().reference,
        "imagePullPolicy": "Never",
        "command": [*SHELL, script],
        "securityContext": RESTRICTED,
        "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": in_namespace, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        },
    }


def apply(cluster: LocalCluster, *objects: dict[str, Any]) -> None:
    kubectl(cluster, "apply", "-f", "-", stdin=yaml.safe_dump_all(objects))


def wait_for(cluster: LocalCluster, in_namespace: str, what: str, condition: str) -> None:
    kubectl(cluster, "wait", "-n", in_namespace, what, f"--for={condition}", "--timeout=60s")


def kubectl(cluster: LocalCluster, *arguments: str, stdin: str | None = None) -> str:
    program = programs.ensure("kubectl")["kubectl"]
    done = subprocess.run(
        [program, f"--kubeconfig={cluster.kubeconfig}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout
