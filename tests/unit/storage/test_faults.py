"""The system refuses something in the middle. What decides: the program, its situation, which call,
what the system says.

Whatever it is: an error that names the path and the remedy, or a correct result; the state file is
the old or the new one, nothing that can be served is gone, and the next run makes it all good.
"""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pullthrough.storage import canary
from pullthrough.storage.errors import StorageError
from pullthrough.storage.store import FileStore
from tests import interrupted
from tests.storage_programs import CASES, NOW, OTHER, Case, arranged, is_whole, reachable, state_of
from tests.storage_trees import FailingStore, FakeClock, Tree

MAY_END = {"prepare, nothing there", "prepare, after the Job"}
"""Prepares that may refuse to start a registry: the marker is not written; a migration can go back."""
SITUATIONS = [
    *("prepare, after the Job", "prepare, malformed", "prepare, untidy", "prepare, off v2"),
    *("migrate", "reseed, malformed", "keep", "keep, torn state", "sweep", "purge"),
]
"""The others write in the same ways; tests/unit/storage/test_kills.py has them all."""
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def memory() -> Iterator[Path]:
    with interrupted.in_memory() as directory:
        yield directory


def once(case: Case, root: Path) -> interrupted.Program:
    return lambda: case.run(FileStore(root), FakeClock(NOW)) and None


class Bench:
    """A case's storage, again and again; and what must hold after each damaged run."""

    def __init__(self, name: str, memory: Path) -> None:
        self.name, self.case, self.memory = name, CASES[name], memory
        self.template = arranged(self.case, memory / "template")
        whole = Tree(interrupted.copy(self.template.root, memory / "whole"))
        self.undisturbed = interrupted.run(once(self.case, whole.root))
        self.aim = interrupted.everything(whole.root)
        jobs = [path.read_bytes() for path in self.template.root.glob("*.next.*.json")]
        self.states = [state_of(self.template), state_of(whole), *jobs]
        self.served = reachable(whole if self.case.removes_expired else self.template)

    def fresh(self) -> Tree:
        root = self.memory / "tree"
        if root.exists():
            shutil.rmtree(root)
        return Tree(interrupted.copy(self.template.root, root))

    def check(self, tree: Tree, raised: str, where: str, *, same_end: bool = True) -> None:
        if raised:
            assert raised.startswith("Storage"), f"{where}: {raised}"
            assert ": " in raised, f"{where}: {raised}"
            starts_anyway = self.name.startswith("prepare") and self.name not in MAY_END
            assert not starts_anyway, f"{where}: {raised}"
        assert self.served.items() <= reachable(tree).items(), where
        content = state_of(tree)
        assert content in self.states or is_whole(content), where
        self.case.run(tree.store, FakeClock(NOW))
        if self.name.startswith("prepare"):
            # A canary that could not be planted is not planted later; a full disk loses orphans.
            assert _covered(state_of(tree)) == _covered(self.states[1]), where
        elif same_end:
            assert _settled(interrupted.everything(tree.root)) == _settled(self.aim), where


def _covered(content: bytes | None) -> set[str]:
    return {key for key in json.loads(content or b"{}") if not canary.is_canary(key)}


def _settled(found: dict[str, tuple[str, str, bytes | str | None]]) -> object:
    """Without the copy of what was malformed, which is kept only where it can be."""
    return {path: what for path, what in found.items() if "malformed" not in path}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_disk_that_is_full_from_any_write_on(memory: Path, name: str) -> None:
    bench = Bench(name, memory)
    for number, call in enumerate(bench.undisturbed.calls):
        tree = bench.fresh()
        program = once(bench.case, tree.root)
        ending = interrupted.run_refused(program, number, errno.ENOSPC, ever_after=True)
        where = f"full from change {number} on: {call}"
        if name.startswith("prepare"):
            assert is_whole(state_of(tree)) or ending.raised, where
        bench.check(tree, ending.raised, where)


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_input_output_error_at_any_write(memory: Path, name: str) -> None:
    bench = Bench(name, memory)
    for number, call in enumerate(bench.undisturbed.calls):
        tree = bench.fresh()
        program = once(bench.case, tree.root)
        ending = interrupted.run_refused(program, number, errno.EIO, ever_after=False)
        bench.check(tree, ending.raised, f"error at change {number}: {call}")


@pytest.mark.parametrize("name", SITUATIONS)
def test_read_only_changes_nothing_and_says_so(memory: Path, name: str) -> None:
    bench = Bench(name, memory)
    tree = bench.fresh()
    before = interrupted.everything(tree.root)
    program = once(bench.case, tree.root)
    ending = interrupted.run_refused(program, 0, errno.EROFS, ever_after=True)
    assert interrupted.everything(tree.root) == before
    bench.check(tree, ending.raised, "read-only")


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_input_output_error_at_any_read(memory: Path, name: str) -> None:
    bench = Bench(name, memory)
    counting = FailingStore(bench.fresh().root)
    bench.case.run(counting, FakeClock(NOW))
    # The keeper's later passes read what its first ones read.
    for number, path in enumerate(counting.reads[: 120 if "keep" in name else None]):
        tree = bench.fresh()
        raised = ""
        try:
            bench.case.run(FailingStore(tree.root, number), FakeClock(NOW))
        except StorageError as error:
            raised = f"{type(error).__name__}: {error.message}"
            assert path.rpartition(".json.")[0] in raised
            assert "Input/output" in raised
        is_marker = path.startswith("pullthrough/marker.json") or "holds" in raised
        where = f"error at read {number} of {path}"
        bench.check(tree, "" if is_marker else raised, where, same_end=False)


@pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("name", ["prepare, first start", "reseed", "keep, backstop"])
def test_permission_denied_in_the_middle(memory: Path, name: str) -> None:
    """Each directory and file in turn belongs to somebody else and is closed to the program."""
    memory.chmod(0o755)
    bench = Bench(name, memory)
    for path in sorted(bench.aim):
        tree = bench.fresh()
        for found in [tree.root, *tree.root.rglob("*")]:
            os.lchown(found, OTHER, OTHER)
        victim = tree.root / path
        if not victim.exists():
            continue
        os.chown(victim, 0, 0)
        victim.chmod(0o700 if victim.is_dir() else 0o600)
        before = interrupted.everything(tree.root)
        ending = interrupted.run(once(bench.case, tree.root), user=OTHER)
        after = interrupted.everything(tree.root)
        where = f"{path} closed: {ending.raised}"
        assert ending.raised.startswith("Storage") or not ending.raised, where
        if ending.raised and not name.startswith("prepare"):
            assert {p: w for p, w in after.items() if not p.endswith(".tmp")} == before, where
        victim.chmod(0o755 if victim.is_dir() else 0o644)
        assert bench.served.items() <= reachable(tree).items(), where
        os.chown(victim, OTHER, OTHER)
        bench.case.run(tree.store, FakeClock(NOW))
        assert bench.served.items() <= reachable(tree).items(), where


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A real file system of half a mebibyte."""
    if not IS_ROOT:
        pytest.skip("only root can mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_real_disk_with_room_for_some_of_the_writes(memory: Path, tiny: Path, name: str) -> None:
    bench = Bench(name, memory)
    page = os.statvfs(tiny).f_frsize
    for pages in range(5):
        tree = Tree(interrupted.copy(bench.template.root, tiny / "tree"))
        ballast = tiny / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(os.statvfs(tiny).f_bavail * page))
        os.truncate(ballast, ballast.stat().st_size - pages * page)
        ending = interrupted.run(once(bench.case, tree.root))
        ballast.unlink()
        bench.check(tree, ending.raised, f"{pages} pages free")
        shutil.rmtree(tree.root)
