"""Fuzz target: our parser of the TTL state beside Go's own decoder (`make fuzz`)."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["pullthrough.storage.state", "pullthrough.storage.gojson"]
):
    from tests.fuzz import cases, decoder


def main() -> None:
    """Run until libFuzzer's own limit; a difference is a crash, with the file that shows it."""
    # libFuzzer ends the process: nothing after it runs, so nothing is left to be removed.
    corpus = Path("build/fuzz-state")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, raw in enumerate(cases.CASES):
        (corpus / str(number)).write_bytes(raw)
    with decoder.running(corpus.parent) as go:

        def one(raw: bytes) -> None:
            found = decoder.difference(raw, go)
            if found is not None:
                msg = f"{found}: {raw!r}"
                raise AssertionError(msg)

        atheris.Setup([*sys.argv, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
