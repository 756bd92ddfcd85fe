"""Waiting with a deadline, and saying what for."""

import time
from collections.abc import Callable
from typing import TypeVar

from e2e.cluster.errors import TimedOut

T = TypeVar("T")


def until(
    what: str,
    look: Callable[[], T | None],
    *,
    within: float,
    every: float = 0.1,
    why: Callable[[], str] = str,
) -> T:
    """Return the first answer that is neither None nor false; `why` may add what was there instead."""
    deadline = time.monotonic() + within
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            msg = f"waited {within:.0f} s for {what}. {why()}".strip()
            raise TimedOut(msg)
        time.sleep(every)
