"""What all storage programs end with."""

import json
from pathlib import Path

import pytest

from pullthrough.storage import program
from pullthrough.storage.errors import StorageUnreadable


@pytest.mark.parametrize(
    "message",
    [
        {"version": 1, "reason": "StorageUnreadable", "message": "x" * 9000},
        {"version": 1, "reason": "StorageUnreadable", "message": '\u00e4\U0001f4a5"' * 3000},
        {"version": 1, "leaks": {f"leak{n}": n for n in range(2000)}, "problem": "y" * 5000},
        {"version": 1, "examples": [f"path/{n}" for n in range(2000)]},
        {"version": 1, "a": "z" * 4000, "b": "z" * 4000, "c": None},
    ],
    ids=["long", "not ASCII", "leaks", "examples", "two texts"],
)
def test_a_message_that_is_too_long_is_shortened_and_still_json(message: dict[str, object]) -> None:
    text = program.shortened(message)
    assert len(text.encode()) <= 4096
    assert len(text.encode()) > 1500, "no more is taken than must be"
    kept = json.loads(text)
    assert kept["version"] == 1
    assert kept.keys() == message.keys()


def test_a_short_message_is_left_alone() -> None:
    message = {"version": 1, "entries": 3, "problem": None}
    assert json.loads(program.shortened(message)) == message


def test_a_long_failure_can_be_read_from_the_termination_message(tmp_path: Path) -> None:
    def work() -> dict[str, object]:
        raise StorageUnreadable("a/" * 4000 + ": Input/output error")

    path = tmp_path / "message"
    assert program.finish(work, str(path)) == 1
    told = json.loads(path.read_bytes())
    assert told["reason"] == "StorageUnreadable"
    assert path.stat().st_size <= 4096
