"""Programs started by us, known by process id and start time, so that only they are ever ended.

A process id alone is not enough: what a killed run wrote down may meanwhile be somebody else's.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One process; `since` is its start time in clock ticks after boot, and `boot` which boot."""

    name: str
    pid: int
    since: str
    boot: str

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return self.boot == boot_id() and _start_time(self.pid) == self.since

    def kill(self) -> None:
        """End it at once, if it is still the one."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def describe(pid: int, name: str) -> Started:
    """Note a living process, for later."""
    since = _start_time(pid)
    if since is None:
        msg = f"{name} (process {pid}) ended at once"
        raise ClusterError(msg)
    return Started(name=name, pid=pid, since=since, boot=boot_id())


def boot_id() -> str:
    """Which boot of the kernel this is; start times mean nothing across boots."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return ""


def _start_time(pid: int) -> str | None:
    try:
        # The second field is the program's name in brackets and may hold anything, brackets too.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    is_zombie = after_name[0] == "Z"
    return None if is_zombie else after_name[19]


def running(name: str) -> Iterator[int]:
    """Process ids of this machine's programs of this name; one that has ended and is not reaped has no command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            is_named = (folder / "comm").read_text().strip() == name
            if is_named and (folder / "cmdline").read_bytes():
                yield int(folder.name)


class Child:
    """A program that lives no longer than this process, with its output in a file."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        """Start it."""
        self.name = name
        self._log = log
        argv = [str(word) for word in command]
        # A test run that is killed cannot stop its children; the kernel can. Only from the main thread:
        # the signal comes when the *thread* that started the child ends.
        if shutil.which("setpriv") and threading.current_thread() is threading.main_thread():
            argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def has_ended(self) -> bool:
        """Whether it is gone, for whatever reason."""
        return self._process.poll() is not None

    def tail(self, size: int = 1500) -> str:
        """The end of what it said, for a message about its failure."""
        return f"{self.name} said last:\n{self._log.read_text(errors='replace')[-size:]}"

    def stop(self, *, grace: float = 0) -> None:
        """End it; with `grace` seconds to do so by itself."""
        if grace and not self.has_ended():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        if not self.has_ended():
            self._process.kill()
        self._process.wait()
