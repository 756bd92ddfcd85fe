"""Sixteen places on a machine where a cluster can be: addresses, names, a folder, and who is there.

The addresses are carved out of 198.18.0.0/15, which is set aside for benchmarks and so collides with
nobody. Everything that a cluster leaves in the kernel carries its slot's number, so that whoever takes
the slot next can remove what a killed run left. A slot's folder holds a record of its owner and
processes; the slot is taken while either lives.
"""

import contextlib
import dataclasses
import ipaddress
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.cluster import locks
from e2e.cluster.errors import Unavailable
from e2e.cluster.processes import Started, describe
from e2e.cluster.programs import say

COUNT = 16
_FIRST = int(ipaddress.IPv4Address("198.18.0.0"))
_SIZE = 32 * 256  # a /19 each
_LONGEST_OF_ANOTHER_RUN = 600.0
"""Seconds; it is held while what killed runs left is removed, a few seconds for each."""


def base_folder() -> Path:
    """Where clusters live while they run. A short path: sockets below it may have 108 characters."""
    return Path(os.environ.get("E2E_CLUSTER_DIR") or "/var/tmp/pullthrough-clusters")


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """One place. Of its /19: node /24 at 0, services /21 at 8, pods /20 at 16."""

    number: int

    def _at(self, third: int, fourth: int = 0) -> str:
        return str(ipaddress.IPv4Address(_FIRST + self.number * _SIZE + third * 256 + fourth))

    @property
    def name(self) -> str:
        """Of its network namespace, its link on the host, its cgroups and its CNI network."""
        return f"ptc-{self.number}"

    @property
    def folder(self) -> Path:
        """Everything on disk."""
        return base_folder() / str(self.number)

    @property
    def host(self) -> str:
        """This machine, seen from the node: what listens here is reached by pods."""
        return self._at(0, 1)

    @property
    def node(self) -> str:
        """The node's address."""
        return self._at(0, 10)

    @property
    def services(self) -> str:
        """Range of service addresses."""
        return self._at(8) + "/21"

    @property
    def api_service(self) -> str:
        """The `kubernetes` service: always the first of the range."""
        return self._at(8, 1)

    @property
    def dns_service(self) -> str:
        """The service of CoreDNS."""
        return self._at(8, 10)

    @property
    def pods(self) -> str:
        """Range of pod addresses, the whole cluster's."""
        return self._at(16) + "/20"

    @property
    def node_pods(self) -> str:
        """The node's part of it; the other half is for a second node."""
        return self._at(16) + "/21"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who is in a slot. Without owner the cluster is meant to outlive the command that started it."""

    owner: Started | None
    processes: tuple[Started, ...] = ()

    @property
    def is_living(self) -> bool:
        """With an owner only as long as that lives; else as long as any of its processes does."""
        if self.owner is not None:
            return self.owner.is_alive()
        return any(process.is_alive() for process in self.processes)

    @property
    def is_kept(self) -> bool:
        """Whether it lives and nobody will stop it but a person."""
        return self.owner is None and self.is_living


def read(slot: Slot) -> Record | None:
    """What the slot's folder says; None where there is no cluster, nor the rest of one."""
    try:
        data = json.loads((slot.folder / "record.json").read_text())
    except FileNotFoundError:
        return Record(owner=None) if slot.folder.exists() else None
    except ValueError:  # cut off while being written; then nothing of it can be trusted
        return Record(owner=None)
    return Record(
        owner=Started(**data["owner"]) if data["owner"] else None,
        processes=tuple(Started(**each) for each in data["processes"]),
    )


def write(slot: Slot, record: Record) -> None:
    """Replace the record in one step."""
    partial = slot.folder / "record.json.partial"
    partial.write_text(json.dumps(dataclasses.asdict(record)))
    partial.rename(slot.folder / "record.json")


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock over all slots: nobody takes or leaves one meanwhile."""
    what = "starting or removing a cluster"
    with locks.held(
        base_folder() / "lock",
        what,
        within=_LONGEST_OF_ANOTHER_RUN,
        waiting=lambda: say(f"waiting for another run that is {what}"),
    ):
        yield


def take() -> Slot:
    """Make a free slot this process's own; the lock must be held."""
    taken = {slot.number for slot, _ in occupied()}
    free = [Slot(number) for number in range(COUNT) if number not in taken]
    if not free:
        msg = f"all {COUNT} places for clusters on this machine are taken; see `status`"
        raise Unavailable(msg)
    slot = free[0]
    slot.folder.mkdir(parents=True)
    write(slot, Record(owner=describe(os.getpid(), "owner")))
    return slot


def occupied() -> Sequence[tuple[Slot, Record]]:
    """All slots where something is, living or dead."""
    found = ((Slot(number), read(Slot(number))) for number in range(COUNT))
    return [(slot, record) for slot, record in found if record is not None]
