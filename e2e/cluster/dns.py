"""The cluster's DNS: the objects that lead to CoreDNS, and a question to see that it answers."""

import secrets
import socket
import struct
from collections.abc import Callable

from e2e.cluster.rest import Json

_PORTS = [
    {"name": "dns", "port": 53, "protocol": "UDP"},
    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
]


def service(address: str) -> Json:
    """Return a Service without selector: CoreDNS is no pod here."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": address, "ports": _PORTS},
    }


def endpoints(node: str) -> Json:
    """Where that Service leads: to the node's own address."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [node], "conditions": {"ready": True}}],
        "ports": _PORTS,
    }


def resolver(server: str, name: str) -> Callable[[], bool]:
    """Return a question whether the server knows an address of this name."""

    def ask() -> bool:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        one_question = struct.pack(">6H", secrets.randbits(16), 0x0100, 1, 0, 0, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
            question.settimeout(0.5)
            try:
                question.sendto(
                    one_question + labels + b"\0" + struct.pack(">2H", 1, 1), (server, 53)
                )
                answer = question.recv(512)
            except OSError:
                return False
        answers = struct.unpack(">H", answer[6:8])[0]
        return bool(answers)

    return ask
