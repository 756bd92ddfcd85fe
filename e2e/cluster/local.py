"""Provider `local`: one real Kubernetes node on this machine, without a container engine.

Start, in this order, because each step needs the one before:
 1. what can take minutes or fail: programs, packages, images; no slot is held meanwhile
 2. take a slot, removing what killed runs left
 3. control groups, network, certificates
 4. etcd, kube-apiserver and containerd; images go in while the API server starts
 5. controllers, kubelet, kube-proxy, CoreDNS, the provisioner of volumes
 6. wait for a Ready node, a default service account and an answer from DNS

Stopping has one way, for a clean end and for the rest of a killed run: end every process in the cluster's
control groups, unmount what is mounted under its folder, remove network, groups and folder. Nothing is
asked to end by itself, so nothing depends on what still works.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from e2e.cluster import cgroups, debian, dns, images, network, node, pki, programs, slots, storage
from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError, Unavailable
from e2e.cluster.mounts import unmount_below
from e2e.cluster.processes import Started, describe, running
from e2e.cluster.rest import Api, Json
from e2e.cluster.slots import Record, Slot
from e2e.cluster.waiting import until

_PROGRAMS = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
    "kubectl", "coredns",
)  # fmt: skip
_PACKAGES = (
    "containerd", "runc", "containernetworking-plugins", "iptables", "iproute2", "procps",
    "util-linux", "mount", "openssl",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]


class LocalCluster:
    """A cluster in its slot; also one that another command started."""

    is_here = True
    outlives_the_run = False

    def __init__(self, slot: Slot) -> None:
        """Nothing is started; see `start`."""
        self.slot = slot
        self.name = slot.name
        self.kubeconfig = slot.folder / "kubeconfig"
        self.host_address = slot.host
        self._children: list[subprocess.Popen[bytes]] = []
        self._started: list[Started] = []

    def load_image(self, archive: Path) -> None:
        """Give the node an image; pods that use it must not have `imagePullPolicy: Always`."""
        socket = str(node.socket(self.slot))
        command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "import"]
        run([*command, archive], f"loading {archive.name}", within=600)

    def volume_path(self, namespace: str, claim: str) -> Path | None:
        """Where the claim's files are; None while it has no volume."""
        api = self._api()
        found = api.find(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        volume = (found or {}).get("spec", {}).get("volumeName")
        if not volume:
            return None
        return Path(api.get(f"/api/v1/persistentvolumes/{volume}")["spec"]["local"]["path"])

    def node_exec(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's network namespace."""
        command = [*network.enter(self.slot), *argv]
        return run(command, f"{argv[0]} on the node", within=120, check=False)

    def stop(self) -> None:
        """End it and remove every trace; harmless when there is none."""
        clean(self.slot, reap=self._reap)

    def keep(self) -> None:
        """Let it outlive this process; `down` ends it."""
        slots.write(self.slot, Record(owner=None, processes=tuple(self._started)))

    def bring_up(self, built: dict[str, Path], pause: images.Image, load: Sequence[Path]) -> None:
        """Steps 3 to 6; the slot is ours and empty."""
        slot = self.slot
        (slot.folder / "log").mkdir()
        (slot.folder / "run").mkdir()
        cgroups.create(slot)
        network.create(slot)
        layout = node.Layout(slot=slot, programs=built, pki=self._trust(), pause=pause.reference)
        self._start("etcd", node.etcd(layout))
        self._start("kube-apiserver", node.apiserver(layout))
        self._start("containerd", node.containerd(layout))
        self._wait("containerd", 30, self._containerd_answers)
        for archive in (pause.archive, *load):
            self.load_image(archive)
        api = self._api()
        self._wait("kube-apiserver", 90, lambda: api.answers("/readyz"))
        self._start("kube-controller-manager", node.controller_manager(layout))
        self._start("kube-scheduler", node.scheduler(layout))
        self._start("kubelet", node.kubelet(layout))
        self._start("kube-proxy", node.kube_proxy(layout))
        self._start("coredns", node.coredns(layout))
        self._start_provisioner(layout)
        self._create_objects(api)
        self._wait("kubelet", 120, lambda: _is_ready(api), what="a Ready node")
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("kube-controller-manager", 60, lambda: api.answers(account), what=account)
        # Asked by its service address and from this machine: then kube-proxy and the routes work too.
        resolves = dns.resolver(slot.dns_service, "kubernetes.default.svc.cluster.local")
        self._wait("coredns", 60, resolves, what="an answer from the DNS service")

    def _trust(self) -> pki.Files:
        slot = self.slot
        admin = pki.Identity(user="admin", groups=("system:masters",))
        kubelet = pki.Identity(user=f"system:node:{node.NODE_NAME}", groups=("system:nodes",))
        service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
        # The service's address must be among them: pods verify it.
        names = (*service, "localhost", "127.0.0.1", slot.node, slot.api_service)
        files = pki.create(slot.folder / "pki", names, [admin, kubelet])
        server = node.url(slot)
        pki.write_kubeconfig(self.kubeconfig, server=server, ca=files.ca, identity=admin)
        node_config = files.folder / "node.kubeconfig"
        pki.write_kubeconfig(node_config, server=server, ca=files.ca, identity=kubelet)
        return files

    def _api(self) -> Api:
        files = pki.Files(folder=self.slot.folder / "pki")
        return Api(url=node.url(self.slot), token=files.first_token(), ca=files.ca)

    def _start_provisioner(self, layout: node.Layout) -> None:
        token = layout.folder / "pki" / "admin.token"
        token.write_text(layout.pki.first_token())
        arguments = [node.url(self.slot), token, layout.pki.ca, layout.folder / "volumes"]
        command = [sys.executable, "-m", "e2e.cluster.storage", *map(str, arguments)]
        self._start("provisioner", [*command, node.NODE_NAME])

    def _create_objects(self, api: Api) -> None:
        system = "namespaces/kube-system"
        api.ask("POST", f"/api/v1/{system}/services", dns.service(self.slot.dns_service))
        slices = f"/apis/discovery.k8s.io/v1/{system}/endpointslices"
        api.ask("POST", slices, dns.endpoints(self.slot.node))
        for body in storage.classes():
            api.ask("POST", "/apis/storage.k8s.io/v1/storageclasses", body)

    def _start(self, name: str, argv: Sequence[str]) -> None:
        # Into the cluster's control group first, so that whatever it starts is in there too.
        enter_group = 'echo $$ >"$0" && exec "$@"'
        group = cgroups.daemons(self.slot) / "cgroup.procs"
        with self._log(name).open("ab") as log:
            child = subprocess.Popen(
                ["sh", "-c", enter_group, str(group), *network.enter(self.slot), *argv],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        self._started.append(describe(child.pid, name))
        owner = describe(os.getpid(), "owner")
        slots.write(self.slot, Record(owner=owner, processes=tuple(self._started)))

    def _wait(self, name: str, within: float, look: Callable[[], bool], *, what: str = "") -> None:
        def look_unless_ended() -> bool:
            for child, started in zip(self._children, self._started, strict=True):
                if child.poll() is not None:
                    msg = f"{started.name} ended. {self._tail(started.name)}"
                    raise ClusterError(msg)
            return look()

        until(what or name, look_unless_ended, within=within, why=lambda: self._tail(name))

    def _containerd_answers(self) -> bool:
        command = ["ctr", "--address", str(node.socket(self.slot)), "version"]
        return run(command, "an answer of containerd", within=20, check=False).returncode == 0

    def _log(self, name: str) -> Path:
        return self.slot.folder / "log" / f"{name}.log"

    def _tail(self, name: str) -> str:
        return f"{name} said last:\n{self._log(name).read_text(errors='replace')[-2000:]}"

    def _reap(self) -> None:
        for child in self._children:
            child.poll()


def start(load: Sequence[Path] = (), *, kept: bool = False) -> LocalCluster:
    """Start a cluster with these images; it ends with this process unless `kept`."""
    _check_machine()
    began = time.monotonic()
    debian.ensure_packages(_PACKAGES)
    built = programs.ensure(*_PROGRAMS)
    pause = images.pause_image()
    with slots.locked():
        remove_leftovers(clean)
        cluster = LocalCluster(slots.take())
    try:
        cluster.bring_up(built, pause, load)
    except BaseException:
        cluster.stop()
        raise
    if kept:
        cluster.keep()
    programs.say(f"cluster {cluster.name} is ready after {time.monotonic() - began:.0f} s")
    return cluster


def living() -> list[tuple[LocalCluster, Record]]:
    """The clusters on this machine that somebody uses."""
    return [(LocalCluster(slot), record) for slot, record in slots.occupied() if record.is_living]


def remove_leftovers(cleaner: Callable[[Slot], None]) -> None:
    """Clean all slots of killed runs: until then they use processor and memory for nobody. The lock must be held.

    One that cannot be freed is no reason not to use another: its folder keeps it taken.
    """
    for slot, record in slots.occupied():
        if record.is_living:
            continue
        programs.say(f"removing what a killed run left in {slot.name}")
        try:
            cleaner(slot)
        except (ClusterError, OSError) as why:
            programs.say(f"{slot.name} cannot be cleaned and stays unused: {why}")


def clean(slot: Slot, reap: Callable[[], None] = lambda: None) -> None:
    """Remove everything of the slot's cluster, living or dead."""
    for process in (slots.read(slot) or Record(owner=None)).processes:
        process.kill()
    cgroups.kill_all(slot)
    reap()
    _remove_shim_sockets(slot)
    unmount_below(slot.folder)
    network.remove(slot)
    cgroups.remove(slot)
    _remove_links_elsewhere(slot)
    if slot.folder.exists():
        shutil.rmtree(slot.folder)


def _remove_shim_sockets(slot: Slot) -> None:
    """containerd puts these into one folder of the whole machine, whatever its configuration says."""
    for note in (slot.folder / "run" / "containerd").glob(
        "io.containerd.runtime.v2.task/*/*/address"
    ):
        Path(note.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)


def _remove_links_elsewhere(slot: Slot) -> None:
    """Files in folders that kubelet and the CNI library share with everybody on this machine."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{slot.folder}/"):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob(f"{slot.name}-*"):
        result.unlink()


def _check_machine() -> None:
    if sys.platform != "linux":
        reason = f"a local cluster needs Linux, and this is {sys.platform}"
        raise Unavailable(reason)
    if os.geteuid() != 0:
        reason = (
            "a local cluster needs root: it makes network namespaces, mounts and control groups"
        )
        raise Unavailable(reason)
    cgroups.check()
    ours = {process.pid for _, record in slots.occupied() for process in record.processes}
    # One that a cluster of ours started a moment ago may not be in its record yet: its control group tells.
    foreign = {pid for pid in set(running("kubelet")) - ours if not cgroups.is_of_a_slot(pid)}
    if foreign:
        # Both would use /var/lib/kubelet/device-plugins, which no setting moves, and ours empties it.
        reason = (
            f"this machine is a node of another cluster: kubelet runs as process {min(foreign)}"
        )
        raise Unavailable(reason)


def _is_ready(api: Api) -> bool:
    found = api.find(f"/api/v1/nodes/{node.NODE_NAME}") or {}
    conditions: list[Json] = found.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
