"""Killed by SIGKILL at any write. What decides: the program, its situation, the write.

At every point the state file is the old or the new one, whole, and nothing that can be served is
gone; and the next run ends in the very tree that an undisturbed one ends in, byte for byte, with the
same modes and owners and with nothing left aside.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pullthrough.storage.store import FileStore
from tests import interrupted
from tests.storage_programs import CASES, NOW, Case, arranged, reachable, state_of
from tests.storage_trees import FakeClock, Tree


@pytest.fixture
def memory() -> Iterator[Path]:
    with interrupted.in_memory() as directory:
        yield directory


def once(case: Case, root: Path) -> interrupted.Program:
    return lambda: case.run(FileStore(root), FakeClock(NOW)) and None


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_write_nothing_is_torn_and_the_next_run_ends_the_same(
    memory: Path, name: str
) -> None:
    case = CASES[name]
    template = arranged(case, memory / "template")
    served = reachable(template)
    finished_by_the_job = [path.read_bytes() for path in template.root.glob("*.next.*.json")]
    before = [state_of(template), *finished_by_the_job]
    whole = Tree(interrupted.copy(template.root, memory / "whole"))
    undisturbed = interrupted.run(once(case, whole.root))
    assert not undisturbed.raised
    assert len(undisturbed.calls) > 1
    after, aim = state_of(whole), interrupted.everything(whole.root)
    if case.removes_expired:
        assert served.keys() > reachable(whole).keys()
        served = reachable(whole)
    for number, call in enumerate(undisturbed.calls):
        for half in [False, True] if call == "write" else [False]:
            tree = Tree(interrupted.copy(template.root, memory / f"{number} {half}"))
            ending = interrupted.run_killed(once(case, tree.root), number, half=half)
            where = f"killed {'in the middle of' if half else 'before'} change {number}: {call}"
            assert ending.was_killed, where
            assert state_of(tree) in [*before, after], where
            assert served.items() <= reachable(tree).items(), where
            case.run(tree.store, FakeClock(NOW))
            assert interrupted.everything(tree.root) == aim, where
