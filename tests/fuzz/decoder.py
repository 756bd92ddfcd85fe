"""Go's own decoder beside ours: both must say the same of every file.

The Go program is built once for a run (standard library only) and asked over pipes.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pullthrough.storage import layout, state
from pullthrough.storage.errors import StateMalformed

SOURCE = Path(__file__).with_name("decoder.go")


def is_available() -> bool:
    """Whether Go is there to build it."""
    return shutil.which("go") is not None


class Decoder:
    """A running Go program."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def decode(self, raw: bytes) -> dict[str, Any]:
        """`Refused`: why a registry cannot live with it, or empty; `Entries` by map key; what it
        would write."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(raw) + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def running(kept: Path | None = None) -> Iterator[Decoder]:
    """Build and start it; it ends with the context. `kept`: a folder that stays, for a caller that
    does not come back."""
    with tempfile.TemporaryDirectory(prefix="pullthrough-") as directory:
        program = (kept or Path(directory)).resolve() / "decoder"
        subprocess.run(["go", "build", "-o", program, SOURCE], check=True)
        with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield Decoder(process)


def difference(raw: bytes, decoder: Decoder) -> str | None:
    """What our reading of a file and Go's differ in; None if they agree."""
    theirs = decoder.decode(raw)
    try:
        ours = state.parse(raw)
    except StateMalformed as error:
        return None if theirs["Refused"] else f"we refuse it ({error.problem}), Go loads it"
    if theirs["Refused"]:
        return f"we load it, Go does not: {theirs['Refused']}"
    for map_key, entry in theirs["Entries"].items():
        key, kind = entry["Key"], entry["Type"]
        time = entry["Seconds"] * state.SECOND + entry["Nanos"]
        time = max(state.ZERO_TIME, min(time, state.LATEST_TIME))
        if map_key == key and kind in (0, 1) and layout.parse_key(key) is not None:
            if ours.entries.get(key) != (time, kind):
                return f"{key}: {ours.entries.get(key)} is for Go {(time, kind)}"
        elif map_key not in ours.odd and "\ufffd" not in map_key:
            return f"{map_key!r} is not among the odd entries"
    count = len(ours.entries) + len(ours.odd)
    if count != len(theirs["Entries"]) and "\ufffd" not in "".join(theirs["Entries"]):
        return f"we see {count} entries, Go {len(theirs['Entries'])}"
    written = state.format(ours.entries)
    again = decoder.decode(written)
    if again["Refused"] or again["Written"].encode() != written:
        return f"what we write, Go writes otherwise: {again}"
    return None
