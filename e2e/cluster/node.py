"""What the node's programs are told: one function per program, giving its command and writing its files.

Each unusual setting is one that was needed: on machines that forbid some of what a node usually may, or
because two clusters share one kernel. Files are in block style: kubelet and kube-proxy take a leading
brace for JSON.
"""

import dataclasses
import json
import textwrap
from pathlib import Path

from e2e.cluster import debian, pki
from e2e.cluster.mounts import can_overlay
from e2e.cluster.slots import Slot

NODE_NAME = "node0"
PORT = 6443


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One cluster's slot, programs, certificates and pause image."""

    slot: Slot
    programs: dict[str, Path]
    pki: pki.Files
    pause: str

    @property
    def folder(self) -> Path:
        """Everything on disk."""
        return self.slot.folder

    @property
    def socket(self) -> Path:
        """Where containerd listens."""
        return socket(self.slot)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's; it works on this machine and on the node."""
        return self.folder / "kubeconfig"

    @property
    def node_kubeconfig(self) -> Path:
        """The kubelet's."""
        return self.folder / "pki" / "node.kubeconfig"


def socket(slot: Slot) -> Path:
    """Where the containerd of this slot listens."""
    return slot.folder / "run" / "containerd.sock"


def url(slot: Slot) -> str:
    """The API server's address."""
    return f"https://{slot.node}:{PORT}"


def etcd(layout: Layout) -> list[str]:
    """One member on the node's loopback; its data needs to survive no power cut."""
    return [
        str(layout.programs["etcd"]),
        f"--data-dir={layout.folder / 'etcd'}",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
    ]


def apiserver(layout: Layout) -> list[str]:
    """The API server with RBAC, node restriction and Pod Security admission as by default."""
    return [
        str(layout.programs["kube-apiserver"]),
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={layout.slot.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--advertise-address={layout.slot.node}",
        f"--secure-port={PORT}",
        "--allow-privileged",
        # exec and logs go to the kubelet by address: the node's name resolves nowhere.
        "--kubelet-preferred-address-types=InternalIP",
        *layout.pki.apiserver_flags(),
    ]


def controller_manager(layout: Layout) -> list[str]:
    """All controllers, alone."""
    return [
        str(layout.programs["kube-controller-manager"]),
        f"--kubeconfig={layout.kubeconfig}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--cluster-cidr={layout.slot.pods}",
        *layout.pki.controller_manager_flags(),
    ]


def scheduler(layout: Layout) -> list[str]:
    """The scheduler, alone."""
    return [
        str(layout.programs["kube-scheduler"]),
        f"--kubeconfig={layout.kubeconfig}",
        "--leader-elect=false",
    ]


def containerd(layout: Layout) -> list[str]:
    """The runtime, beside any other on this machine: root, state and socket of its own."""
    folder = layout.folder
    config = _write(
        folder / "containerd.toml",
        f"""
        version = 2
        root = "{folder}/containerd"
        state = "{folder}/run/containerd"
        [grpc]
        address = "{layout.socket}"
        [plugins."io.containerd.grpc.v1.cri"]
        sandbox_image = "{layout.pause}"
        # Without the capability to lower it, runc dies with "can't get final child's PID from pipe: EOF".
        restrict_oom_score_adj = true
        # In /run/netns nobody could tell whose they are after a killed run.
        netns_mounts_under_state_dir = true
        [plugins."io.containerd.grpc.v1.cri".containerd]
        snapshotter = "{"overlayfs" if can_overlay(folder) else "native"}"
        [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "{debian.cni_folder()}"
        conf_dir = "{folder}/cni"
        [plugins."io.containerd.grpc.v1.cri".registry]
        config_path = "{folder}/certs.d"
        """,
    )
    (folder / "cni").mkdir()
    (folder / "certs.d").mkdir()
    (folder / "cni" / "10-pods.conflist").write_text(json.dumps(_cni(layout.slot)))
    return ["containerd", "--config", str(config)]


def kubelet(layout: Layout) -> list[str]:
    """The kubelet; whoever reaches its port may use it, and only this machine does."""
    folder = layout.folder
    config = _write(
        folder / "kubelet.yaml",
        f"""
        apiVersion: kubelet.config.k8s.io/v1beta1
        kind: KubeletConfiguration
        cgroupDriver: cgroupfs
        cgroupRoot: /{layout.slot.name}
        failCgroupV1: false
        failSwapOn: false
        enforceNodeAllocatable: []
        containerRuntimeEndpoint: unix://{layout.socket}
        authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
        authorization: {{mode: AlwaysAllow}}
        clusterDNS: [{layout.slot.dns_service}]
        clusterDomain: cluster.local
        # This machine's name servers cannot be reached from the namespace.
        resolvConf: ""
        # Neither eviction nor image collection because this machine's disk is full for other reasons:
        # an image that is collected cannot be pulled again.
        evictionHard: {{memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}}
        imageGCHighThresholdPercent: 100
        # A changed Secret or ConfigMap reaches its volume after this, by default after a minute.
        syncFrequency: 10s
        podLogsDir: {folder}/podlogs
        volumePluginDir: {folder}/volumeplugins
        """,
    )
    return [
        str(layout.programs["kubelet"]),
        f"--config={config}",
        f"--kubeconfig={layout.node_kubeconfig}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={layout.slot.node}",
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'pki' / 'kubelet'}",
    ]


def kube_proxy(layout: Layout) -> list[str]:
    """Services by iptables, in the namespace."""
    config = _write(
        layout.folder / "kube-proxy.yaml",
        f"""
        apiVersion: kubeproxy.config.k8s.io/v1alpha1
        kind: KubeProxyConfiguration
        mode: iptables
        clusterCIDR: {layout.slot.pods}
        clientConnection: {{kubeconfig: {layout.kubeconfig}}}
        # The table's size is a setting of the whole machine.
        conntrack: {{maxPerCore: 0}}
        iptables: {{minSyncPeriod: 100ms}}
        """,
    )
    command = [str(layout.programs["kube-proxy"]), f"--config={config}"]
    return [*command, f"--hostname-override={NODE_NAME}"]


def coredns(layout: Layout) -> list[str]:
    """DNS as a program on the node's address, reached through a Service without selector."""
    config = _write(
        layout.folder / "Corefile",
        f"""
        cluster.local:53 {{
          bind {layout.slot.node}
          errors
          kubernetes cluster.local {{
            kubeconfig {layout.kubeconfig} test
            ttl 5
          }}
        }}
        # There is nothing outside: say so at once instead of letting programs retry. In a block of its
        # own, as within one block this comes before everything else, wherever it is written.
        .:53 {{
          bind {layout.slot.node}
          template ANY ANY . {{
            rcode NXDOMAIN
          }}
        }}
        """,
    )
    return [str(layout.programs["coredns"]), "-conf", str(config)]


def _cni(slot: Slot) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": slot.node_pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"{slot.folder}/run/addresses",
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": slot.name, "plugins": [bridge, portmap]}


def _write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text).lstrip())
    return path
