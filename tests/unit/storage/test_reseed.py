"""The TTL state is written only when it must be, by the whole, and never beneath a registry."""

import json
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import layout, reseed, state
from pullthrough.storage.errors import StorageFull
from tests.storage_trees import HOUR, SECOND, FakeClock, FullStore, Killed, KillingStore, Tree

NOW = 1_900_000_000 * SECOND


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "storage")
    made.populate()
    return made


def reseeded(tree: Tree, store: object = None) -> dict[str, object]:
    used = tree.store if store is None else store
    return dict(
        reseed.reseed(used, FakeClock(NOW), ttl=HOUR, spread=None, dry_run=False)  # type: ignore[arg-type]
    )


def test_a_second_run_does_not_touch_the_file(tree: Tree) -> None:
    assert reseeded(tree)["written"] is True
    before = tree.state_path.stat()
    done = reseeded(tree, KillingStore(tree.root, survive=0))
    after = tree.state_path.stat()
    assert (done["written"], done["changed"]) == (False, 0)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_state_that_a_registry_wrote_in_its_own_way_is_not_touched(tree: Tree) -> None:
    reseeded(tree)
    document = json.loads(tree.state_path.read_bytes())
    shuffled = json.dumps(dict(reversed(document.items())), indent=1).encode()
    tree.state_path.write_bytes(shuffled)
    assert reseeded(tree)["written"] is False
    assert tree.state_path.read_bytes() == shuffled


@pytest.mark.parametrize("extra", ["gone/repository@sha256:" + "0" * 64, "no reference"])
def test_entries_of_nothing_are_dropped_once(tree: Tree, extra: str) -> None:
    reseeded(tree)
    whole = tree.state_path.read_bytes()
    document = json.loads(whole)
    entry = {"Key": extra, "ExpiryData": state.format_time(NOW + 1), "EntryType": 0}
    tree.state_path.write_text(json.dumps({**document, extra: entry}))
    assert reseeded(tree)["dropped"] == 1
    assert tree.state_path.read_bytes() == whole


@pytest.mark.parametrize("old", [None, b"", b"{}", b"null", b'{"torn'])
def test_killed_at_any_write_the_state_is_the_old_or_the_new_one(
    tmp_path: Path, old: bytes | None
) -> None:
    undisturbed = Tree(tmp_path / "undisturbed")
    undisturbed.populate()
    reseeded(undisturbed)
    new = undisturbed.state_path.read_bytes()
    for survive in range(40):
        tree = Tree(tmp_path / str(survive))
        tree.populate()
        if old is not None:
            tree.state_path.write_bytes(old)
        try:
            reseeded(tree, KillingStore(tree.root, survive))
        except Killed:
            found = tree.state_path.read_bytes() if tree.state_path.exists() else None
            assert found in (old, new)
            reseeded(tree)
            is_finished = False
        else:
            is_finished = True
        assert tree.state_path.read_bytes() == new
        if is_finished:
            assert survive >= 3
            return
    pytest.fail("reseed never finished")


def test_a_full_disk_leaves_everything_as_it_was(tree: Tree) -> None:
    tree.state_path.write_bytes(b"{}")
    before = tree.files()
    with pytest.raises(StorageFull):
        reseeded(tree, FullStore(tree.root))
    assert tree.files() == before


def test_it_says_what_it_will_do_and_what_it_did(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.age()
    where = ["reseed", "--storage", str(tree.root), "--ttl", "168h"]
    assert cli.main([*where, "--json", "--dry-run"]) == 0
    assert not tree.state_path.exists()
    assert cli.main([*where, "--json"]) == 0
    assert cli.main([*where, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["plan", "done"] * 3
    assert [line["written"] for line in lines[1::2]] == [False, True, False]
    assert cli.main(where) == 0
    assert f"nothing to do: {layout.STATE}" in capsys.readouterr().out
