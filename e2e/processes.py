"""Finding and hurting processes of one pod, from outside, as a fault would: only those in the pod's own cgroup."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from e2e.scene import StoryFailed


def of_pods(uids: set[str], word: str) -> list[int]:
    """Process ids in the pods' cgroups whose command line has `word` as one of its arguments."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            argv = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if word.encode() not in argv:
                continue
            cgroups = Path(entry.path, "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if any(f"pod{uid}" in cgroups for uid in uids):
            found.append(int(entry.name))
    return found


def catch(
    find_uids: Callable[[], list[str]],
    word: str,
    with_signal: signal.Signals,
    *,
    within: float = 60,
) -> int:
    """Waits for such a process in one of the pods and sends it the signal; returns its id.

    The programs caught here live for a few hundred milliseconds: a thread asks the API server which pods there are, so
    that the process table can be looked at without a pause.
    """
    uids: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            uids.update(find_uids())
            over.wait(0.1)

    threading.Thread(target=look, name="pods", daemon=True).start()
    deadline = time.monotonic() + within
    try:
        while time.monotonic() < deadline:
            for pid in of_pods(set(uids), word):
                try:
                    os.kill(pid, with_signal)
                except ProcessLookupError:
                    continue
                return pid
            time.sleep(0.002)
    finally:
        over.set()
    msg = f"waited {within:.0f} s for a process {word!r}; there was none"
    raise StoryFailed(msg)
