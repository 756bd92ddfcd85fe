"""Programs that are started and waited for: each has a deadline, and its error names what was waited for."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError, TimedOut, Unavailable

_TOLD = 3000
"""Characters of a failed program's output in the message."""


def run(
    argv: Sequence[str | Path],
    doing: str,
    *,
    within: float,
    check: bool = True,
    error: type[Exception] = ClusterError,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; `doing` completes "waited for". `error` is raised where it fails, unless `check` is off.

    After `within` seconds it is ended with all that it started, and TimedOut says what it was about.
    """
    words = [str(word) for word in argv]
    try:
        process = subprocess.Popen(
            words,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A group of its own: a compiler that `go build` started would outlive it and hold the pipes.
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        msg = f"{doing} needs {words[0]}, which is not on this machine"
        raise Unavailable(msg) from missing
    try:
        said, complained = process.communicate(stdin, timeout=within)
    except BaseException as interruption:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _leave(process)
        if isinstance(interruption, subprocess.TimeoutExpired):
            msg = f"waited {within:.0f} s for {doing}: {shlex.join(words)}"
            raise TimedOut(msg) from None
        raise
    if check and process.returncode != 0:
        told = (complained.strip() or said.strip())[-_TOLD:]
        msg = f"{doing} failed: {shlex.join(words)}: exit {process.returncode}: {told}"
        raise error(msg)
    return subprocess.CompletedProcess(words, process.returncode, said, complained)


def _leave(process: subprocess.Popen[str]) -> None:
    """Wait a little and no longer: what hangs in the kernel does not obey even SIGKILL."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what is still to be written to one that was ended
                pipe.close()
