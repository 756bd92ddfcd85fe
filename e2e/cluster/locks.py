"""Locks between runs on one machine; the kernel lets go of one when its holder dies."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from e2e.cluster.errors import TimedOut


@contextlib.contextmanager
def held(
    path: Path, what: str, *, within: float, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock; `what` the other run is doing is for the message, `waiting` is called once if it must be waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + within
    with path.open("w") as lock:
        is_told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if not is_told:
                waiting()
                is_told = True
            if time.monotonic() > deadline:
                msg = f"waited {within:.0f} s for another run that is {what}; it holds {path}"
                raise TimedOut(msg)
            time.sleep(0.2)
        yield
