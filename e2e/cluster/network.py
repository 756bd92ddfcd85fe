"""The node's network: a namespace of its own, and a link by which this machine reaches into it.

    this machine                     namespace ptc-N
    ptc-N (host address) ── veth ── host0 ─ bridge node0 (node address) ┄ cni0 ─ pods

The node's address is on a bridge, as some kernels have no dummy device. This machine gets routes to node,
pods and services by way of that link and nothing else: no forwarding, no rule of its firewall is touched.
The namespace is entered with nsenter, never with `ip netns exec`: that mounts a new /sys and so hides the
control groups from kubelet.
"""

from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError, Unavailable
from e2e.cluster.slots import Slot

_BRIDGE = "node0"
_INNER_LINK = "host0"
_DEADLINE = 60.0
"""Seconds for one change; each takes a few milliseconds unless the kernel is busy taking another namespace down."""


def create(slot: Slot) -> None:
    """Make namespace, bridge, link and routes."""
    remove(
        slot
    )  # in case somebody deleted a dead cluster's folder, and with it the only trace of it
    try:
        _ip("netns", "add", slot.name)
    except ClusterError as error:
        reason = f"this machine does not let us make a network namespace: {error}"
        raise Unavailable(reason) from error
    _inside(slot, "link", "set", "lo", "up")
    _inside(slot, "link", "add", _BRIDGE, "type", "bridge")
    _inside(slot, "addr", "add", f"{slot.node}/24", "dev", _BRIDGE)
    _inside(slot, "link", "set", _BRIDGE, "up")
    # Programs look for a default route to learn their address; this one leads nowhere, as nothing may
    # leave the namespace.
    _inside(slot, "route", "add", "default", "via", slot.node)
    _ip("link", "add", slot.name, "type", "veth", "peer", "name", _INNER_LINK, "netns", slot.name)
    _inside(slot, "link", "set", _INNER_LINK, "master", _BRIDGE, "up")
    _ip("addr", "add", f"{slot.host}/24", "dev", slot.name)
    _ip("link", "set", slot.name, "up")
    for destination in (slot.pods, slot.services):
        _ip("route", "add", destination, "via", slot.node, "dev", slot.name)
    forward = [*enter(slot), "sysctl", "-qw", "net.ipv4.ip_forward=1"]
    run(forward, "turning forwarding on in the namespace", within=_DEADLINE)


def enter(slot: Slot) -> list[str]:
    """Return the words before a command that is to run on the node."""
    return ["nsenter", f"--net={_path(slot)}", "--"]


def remove(slot: Slot) -> None:
    """Remove whatever of it is there; the routes go with the link, the node's rules with the namespace."""
    if Path("/sys/class/net", slot.name).exists():
        _ip("link", "del", slot.name)
    if _path(slot).exists():
        _ip("netns", "del", slot.name)


def _path(slot: Slot) -> Path:
    return Path("/run/netns", slot.name)


def _inside(slot: Slot, *arguments: str) -> None:
    _ip("-n", slot.name, *arguments)


def _ip(*arguments: str) -> None:
    run(["ip", *arguments], f"ip {' '.join(arguments)}", within=_DEADLINE)
