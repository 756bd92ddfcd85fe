"""A cluster's own control groups: its pods' limits live there, and by them all that it started is found.

kubelet gets a root of its own, because two kubelets under one root remove each other's pods as orphans.
The daemons are put beside the pods' groups: whatever they start, runtime shims too, can be found and
ended even when the one who started it was killed and wrote nothing down.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from e2e.cluster.errors import TimedOut, Unavailable
from e2e.cluster.slots import COUNT, Slot

_DAEMONS = "daemons"
_PREFERRED = {"cpu.shares": "8192", "cpu.weight": "800"}
"""Eight times the usual, as version 1 and version 2 say it."""


def check() -> None:
    """Raise `Unavailable` where there are none to use."""
    if not any(os.access(mount, os.W_OK) for mount in _mounts()):
        reason = "a local cluster needs control groups that it may write, under /sys/fs/cgroup"
        raise Unavailable(reason)


def create(slot: Slot) -> None:
    """Make the cluster's group in every hierarchy, old (version 1) and new."""
    for mount in _mounts():
        folder = mount / slot.name
        folder.mkdir(exist_ok=True)
        # A new cpuset has no processors and takes no process until it is given some.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if mount.name == "cpuset" and (folder / name).exists():
                (folder / name).write_text((mount / name).read_text())
    daemons(slot).mkdir(exist_ok=True)


def daemons(slot: Slot) -> Path:
    """The group of the cluster's own programs, in the one hierarchy where they are tracked."""
    mounts = _mounts()
    unified = [mount for mount in mounts if (mount / "cgroup.controllers").exists()]
    return (unified or mounts)[0] / slot.name / _DAEMONS


def of_pods() -> Iterator[Path]:
    """The groups of all pods of our clusters, in one hierarchy; kubelet names them by the pods' uids."""
    for mount in _mounts():
        found = [
            folder
            for kubepods in mount.glob("ptc-*/kubepods")
            for part in (kubepods, kubepods / "burstable", kubepods / "besteffort")
            for folder in _listed(part)
            if folder.name.startswith("pod")
        ]
        if found:
            yield from found
            return


def _listed(folder: Path) -> list[Path]:
    """What is in a group; nothing where it ended meanwhile (`glob` would raise)."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def prefer(slot: Slot) -> None:
    """Give the pods more of the processors than what else runs here, for figures: a node of a real cluster runs little
    else, and without this all pods together get as much as one busy process."""
    for mount in _mounts():
        for name, share in _PREFERRED.items():
            if (mount / slot.name / name).exists():
                (mount / slot.name / name).write_text(share)


def kill_all(slot: Slot, within: float = 30) -> None:
    """End everything in the cluster's groups: daemons, shims, containers."""
    deadline = time.monotonic() + within
    while pids := set(_pids(slot)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            msg = f"waited {within:.0f} s for processes of {slot.name} to end: {sorted(pids)}"
            raise TimedOut(msg)
        time.sleep(0.05)


def is_of_a_slot(pid: int) -> bool:
    """Whether the process is in the control groups of any of our clusters."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True  # gone meanwhile: nobody's
    return any(f"/{Slot(number).name}/" in groups for number in range(COUNT))


def remove(slot: Slot) -> None:
    """Remove the emptied groups, innermost first."""
    for mount in _mounts():
        for folder, _, _ in os.walk(mount / slot.name, topdown=False):
            _remove_emptied(Path(folder))


def _remove_emptied(folder: Path) -> None:
    # The kernel needs a moment after the last process before the group may go.
    for _ in range(100):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


def _pids(slot: Slot) -> Iterator[int]:
    for mount in _mounts():
        for folder, _, files in os.walk(mount / slot.name):
            if "cgroup.procs" in files:
                with contextlib.suppress(FileNotFoundError, OSError):
                    for line in Path(folder, "cgroup.procs").read_text().split():
                        if not _is_zombie(int(line)):
                            yield int(line)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _mounts() -> list[Path]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [
        Path(where)
        for _, where, kind, *_ in lines
        if kind in {"cgroup", "cgroup2"} and where.startswith("/sys/fs/cgroup")
    ]
