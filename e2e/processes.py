"""Finding and hurting processes of pods, from outside, as a fault would: only those in the control groups of our pods.

They are found by what they were started with. Some live for a few hundred milliseconds: neither the API server nor the
whole process table is asked, only the groups of the few pods that there are.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from e2e.cluster import cgroups
from e2e.scene import StoryFailed


def catch(*words: str, with_signal: signal.Signals, pod: str = "", within: float = 60) -> int:
    """Waits for a process of a pod with all these arguments and sends it the signal; returns its id.

    `pod` is a pod's uid: then only in that one.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for pid in _in_pods(pod):
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if all(word.encode() in argv for word in words):
                    os.kill(pid, with_signal)
                    return pid
            except (FileNotFoundError, ProcessLookupError):
                continue
        time.sleep(0.005)
    msg = f"waited {within:.0f} s for a process {' '.join(words)!r} in a pod; there was none"
    raise StoryFailed(msg)


def _in_pods(pod: str) -> Iterator[int]:
    for folder in cgroups.of_pods():
        if pod and folder.name != f"pod{pod}":
            continue
        for container in _listed(folder):
            try:
                yield from map(int, (container / "cgroup.procs").read_text().split())
            except OSError:  # no container's, or it ended meanwhile
                continue


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # the pod ended meanwhile
        return []
