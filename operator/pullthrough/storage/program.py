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
CUT = "..."
"""What a text that was shortened ends with."""
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
        Path(termination_message).write_text(shortened(message), encoding="ascii")
    (sys.stderr if code else sys.stdout).write(text + "\n")
    return code


def shortened(message: Mapping[str, Any], longest: int = LONGEST_MESSAGE) -> str:
    """The message as JSON (ASCII) of at most `longest` bytes, to be parsed whatever is in it: the
    longest text loses its end, again and again; what is still too much after that is left out."""
    kept = dict(message)
    while True:
        text = json.dumps(kept, separators=(",", ":"))
        excess = len(text) - longest
        if excess <= 0:
            return text
        sizes = {name: len(json.dumps(value)) for name, value in kept.items()}
        name = max(sizes, key=lambda candidate: sizes[candidate])
        value = kept[name]
        if isinstance(value, str) and len(value) > len(CUT):
            # A character takes up to twelve bytes of JSON; cutting too little only comes round again.
            keep = max(0, len(value) - max(len(CUT) + 1, excess // 12))
            kept[name] = value[:keep] + CUT
        elif isinstance(value, list) and value:
            kept[name] = value[: len(value) // 2]
        elif isinstance(value, dict) and value:
            kept[name] = dict(list(value.items())[: len(value) // 2])
        else:
            del kept[name]
