"""What the storage programs have in common: options, messages, exit codes."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from pullthrough import durations
from pullthrough.storage.errors import StorageError
from pullthrough.storage.store import Store

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


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}


def printable(text: str) -> str:
    """A text for people and JSON: bytes that are not UTF-8 as `\\xff`, as a surrogate can be neither
    printed nor read by every parser; control characters likewise, which a terminal would obey."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return readable.translate(_CONTROLS)


def cleaned(value: Any) -> Any:
    """The same document with all its texts printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(name)): cleaned(content) for name, content in value.items()}
    return [cleaned(content) for content in value] if isinstance(value, list | tuple) else value


def size(count: int) -> str:
    """A number of bytes for people: `3.2 GiB`."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{count} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


class Sayer:
    """What a program that changes something says: what it will do, how far it is, what it did.

    Plan and outcome go to standard output, as sentences or (`as_json`) as JSON lines with an
    `event`. Progress goes to standard error: one line rewritten on a terminal, else JSON lines.
    """

    def __init__(self, name: str, *, as_json: bool, is_silent: bool = False) -> None:
        self._name = name
        self._as_json = as_json
        self._is_silent = is_silent
        self._counts: dict[str, int] = {}
        self._is_terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._store: Store | None = None

    def opened(self, store: Store) -> Store:
        """The storage that is worked on: what it costs in requests, if it does, is told at the end."""
        self._store = store
        return store

    def progress(self, what: str, more: int) -> None:
        """`more` of something were done; said now and then."""
        self._counts[what] = self._counts.get(what, 0) + more
        pause = 0.2 if self._is_terminal else 5.0
        if self._is_silent or time.monotonic() - self._last < pause:
            return
        self._last = time.monotonic()
        if self._is_terminal:
            told = ", ".join(f"{count} {what}" for what, count in self._counts.items())
            sys.stderr.write(f"\r\x1b[K{told}")
            sys.stderr.flush()
        else:
            self._line(sys.stderr, "progress", {"counts": self._counts})

    def before(self, classes: Mapping[str, Any], *, dry_run: bool) -> None:
        """What will be removed, by class."""
        if self._is_silent:
            return
        self.clear()
        if self._as_json:
            self._line(sys.stdout, "plan", {"remove": classes, "dryRun": dry_run})
            return
        if not classes:
            self.say("nothing to remove")
        for name, row in classes.items():
            verb = "would remove" if dry_run else "will remove"
            told = f"{verb} {row['count']} {name}, {size(row['bytes'])}"
            self.say(f"{told}, such as {row['examples'][0]}")

    def after(self, done: Mapping[str, Any]) -> None:
        """What was removed."""
        if self._is_silent:
            return
        self.clear()
        if self._as_json:
            self._line(sys.stdout, "done", done)
            return
        if done["dryRun"]:
            self.say("dry run: nothing was changed")
        elif not done["changed"]:
            self.say("nothing was changed")
        else:
            parts = [f"{row['count']} {name}" for name, row in done["removed"].items()]
            self.say(f"removed {', '.join(parts) or 'nothing'}: {size(done['bytes'])} given back")
        for sentence in done.get("notes", ()):
            self.say(sentence)

    def say(self, sentence: str) -> None:
        """One line on standard output."""
        sys.stdout.write(printable(sentence) + "\n")

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """One JSON line on standard output."""
        self._line(sys.stdout, event, fields)

    def run(
        self,
        work: Callable[[], Mapping[str, Any]],
        after: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> int:
        """Do the work and tell how it ended; returns the exit code."""
        try:
            done = work()
            requests = getattr(self._store, "requests", None)
            if requests:
                done = {**done, "requests": dict(requests)}
            (self.after if after is None else after)(done)
            if requests and not self._as_json:
                told = ", ".join(f"{count} {kind}" for kind, count in sorted(requests.items()))
                self.say(f"requests to the object store: {told}")
        except StorageError as error:
            self.clear()
            if self._as_json:
                failed = {"reason": error.reason, "message": error.message}
                self._line(sys.stdout, "failed", failed)
            sys.stderr.write(printable(f"pullthrough {self._name}: {error.message}") + "\n")
            return error.exit_code
        return 0

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._is_terminal and self._counts:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self, where: TextIO, event: str, fields: Mapping[str, Any]) -> None:
        document = {"version": 1, "program": self._name, "event": event, **fields}
        where.write(json.dumps(cleaned(document)) + "\n")
        where.flush()
