"""The report: bytes counted once, what expires when, the documented shape, exit codes, its start."""

import json
import os
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


def test_it_is_small(tree: Tree) -> None:
    """How long it takes to start is the bench's; that nothing heavy is imported, test_layout's."""
    script = (
        "import re, sys; from pathlib import Path; from pullthrough import cli;"
        "code = cli.main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]); sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "audit", "--storage", str(tree.root)],
        env={**os.environ, "PYTHONPATH": "operator"},
        check=True,
        capture_output=True,
        text=True,
    )
    peak = int(run.stdout.splitlines()[-1]) * 1024
    assert peak < 22 << 20, f"{peak / (1 << 20):.1f} MiB"
