"""Finding and hurting processes of one pod, from outside, as a fault would: only those in the pod's own cgroup."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from e2e.scene import StoryFailed


def of_pod(uid: str, word: str) -> list[int]:
    """Process ids in the pod's cgroup whose command line has `word` as one of its arguments."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            argv = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if word.encode() in argv and f"pod{uid}" in Path(entry.path, "cgroup").read_text():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def catch(find_uid: object, word: str, with_signal: signal.Signals, *, within: float = 60) -> int:
    """Waits for such a process in a pod whose uid `find_uid()` gives and sends it the signal; returns its id."""
    assert callable(find_uid)
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for uid in find_uid():
            for pid in of_pod(uid, word):
                try:
                    os.kill(pid, with_signal)
                except ProcessLookupError:
                    continue
                return pid
        time.sleep(0.005)
    msg = f"waited {within:.0f} s for a process {word!r}; there was none"
    raise StoryFailed(msg)
