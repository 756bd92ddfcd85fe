"""What the storage programs have in common: options, messages, exit codes."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pullthrough import durations
from pullthrough.storage.errors import StorageError

LONGEST_MESSAGE = 4096
"""Bytes of a termination message that the kubelet keeps."""
SHORTEST_TTL = durations.UNITS_NS["m"]


def short_lived() -> None:
    """Say that this process makes many small objects, no cycles, and ends: Python's collector would
    go through all of them again and again."""
    gc.disable()


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for one command; wrong usage exits with 2."""
    made = argparse.ArgumentParser(
        prog=f"pullthrough {name}", description=description, allow_abbrev=False
    )
    made.add_argument(
        "--storage", required=True, metavar="DIR", help="the registry's rootdirectory"
    )
    return made


def duration(text: str) -> int:
    """An option's Go duration in nanoseconds, zero or more."""
    try:
        nanoseconds = durations.parse_go_ns(text)
    except durations.InvalidDuration as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if nanoseconds < 0:
        msg = f"{text} is negative"
        raise argparse.ArgumentTypeError(msg)
    return nanoseconds


def ttl(text: str) -> int:
    """A ttl in nanoseconds: at least a minute, or the registry collects what it just fetched."""
    nanoseconds = duration(text)
    if nanoseconds < SHORTEST_TTL:
        msg = f"{text} is less than 1m"
        raise argparse.ArgumentTypeError(msg)
    return nanoseconds


def printable(text: str) -> str:
    """A path or message as a terminal may see it: names on a storage are anybody's, and can be no
    UTF-8 or hold what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def finish(
    work: Callable[[], Mapping[str, Any]], termination_message: str | None, *, failed: int = 1
) -> int:
    """Run a program's work; leave its result, or its failure, as termination message and on
    standard output. Returns the exit code: 0, or the error's (where that is 1: `failed`)."""
    try:
        message = {"version": 1, **work()}
        code = 0
    except StorageError as error:
        message = {"version": 1, "reason": error.reason, "message": error.message}
        code = failed if error.exit_code == 1 else error.exit_code
    text = json.dumps(message, separators=(",", ":"))
    if termination_message is not None:
        Path(termination_message).write_bytes(text.encode()[:LONGEST_MESSAGE])
    (sys.stderr if code else sys.stdout).write(text + "\n")
    return code
