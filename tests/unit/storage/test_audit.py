"""The report: bytes counted once, what expires when, the documented shape, exit codes, its start."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import audit, layout, state
from tests.storage_trees import HOUR, SECOND, FakeClock, Tree

NOW = 1_900_000_000 * SECOND


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "storage")


def covered(tree: Tree, **expiries: int) -> None:
    entries = {key: state.Entry(time, layout.Kind.BLOB) for key, time in expiries.items()}
    tree.state_path.write_bytes(state.format(entries))


def test_bytes_are_counted_once_and_per_repository(tree: Tree) -> None:
    shared = [tree.layer(name, b"s" * 100) for name in ("a/b", "c/d")]
    own = tree.layer("a/b", b"o" * 10)
    tree.data(b"orphan")
    covered(tree, **{shared[0]: NOW + HOUR // 2, own: NOW + 30 * HOUR})
    report = audit.audit(tree.store, FakeClock(NOW), ttl=None, with_repositories=True)
    assert (report["bytes"], report["uniqueBytes"], report["blobs"]) == (116, 110, 3)
    assert report["repositories"] == [
        {"name": "a/b", "artifacts": 2, "covered": 2, "bytes": 110, "ownBytes": 10},
        {"name": "c/d", "artifacts": 1, "covered": 0, "bytes": 100, "ownBytes": 0},
    ]
    leaks = {row["class"]: (row["count"], row["bytes"]) for row in report["leaks"]}
    # The data of the uncovered link goes when the other repository's entry fires.
    assert leaks == {"uncovered": (1, 0), "orphan": (1, 6)}
    assert report["expiries"] == [
        {"before": state.format_time(NOW + HOUR), "artifacts": 1, "bytes": 100},
        {"before": state.format_time(NOW + 72 * HOUR), "artifacts": 1, "bytes": 10},
    ]


def test_what_is_overdue_far_ahead_or_gone_is_told(tree: Tree) -> None:
    late, far = tree.layer("a/b", b"late"), tree.layer("a/b", b"far")
    gone = "a/b@sha256:" + "0" * 64
    covered(tree, **{late: NOW - 1, far: NOW + 9000 * HOUR, gone: NOW + HOUR})
    report = audit.audit(tree.store, FakeClock(NOW), ttl=HOUR)
    assert report["state"] == {"status": "whole", "entries": 3, "gone": 1, "overdue": 1, "odd": 0}
    assert [row["before"] for row in report["expiries"]] == [
        state.format_time(NOW),
        state.format_time(NOW + 9000 * HOUR + SECOND),
    ]
    assert [row["class"] for row in report["leaks"]] == ["beyond"]


def test_the_json_has_the_documented_shape_and_the_table_the_same_figures(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.populate()
    where = ["audit", "--storage", str(tree.root)]
    assert cli.main([*where, "--json", "--repositories"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [
        "version",
        "storage",
        "time",
        "artifacts",
        "covered",
        "blobs",
        "bytes",
        "uniqueBytes",
        "state",
        "leaks",
        "expiries",
        "repositories",
    ]
    assert list(report["leaks"][0]) == ["class", "count", "bytes", "examples", "remedy"]
    assert cli.main([*where, "--repositories"]) == 1
    out = capsys.readouterr().out
    assert "14 artifacts, 0 covered" in out
    assert "uncovered" in out and "pullthrough reseed" in out and "library/alpine" in out


@pytest.mark.parametrize(
    ("content", "code"), [(None, 0), (b"{}", 0), (b"", 1), (b"null", 1), (b"[]", 1)]
)
def test_a_state_that_no_registry_starts_on_is_a_finding(
    tree: Tree, content: bytes | None, code: int
) -> None:
    if content is not None:
        tree.state_path.write_bytes(content)
    assert cli.main(["audit", "--storage", str(tree.root)]) == code


def test_it_starts_quickly_and_small(tree: Tree) -> None:
    """Against an interpreter that does nothing: the machine may be slow or busy."""
    environment = {**os.environ, "PYTHONPATH": "operator"}

    def run(*arguments: str) -> float:
        best = 9e9
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=-3)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best = min(best, spent)
        return best

    bare = run("-c", "pass")
    assert run("-m", "pullthrough", "audit", "--storage", str(tree.root)) < bare + 0.13
