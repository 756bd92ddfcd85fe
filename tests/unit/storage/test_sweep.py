"""What nothing can reach goes, and nothing else; offline at once, online by the keeper's rules.

What decides: the links of all repositories, the data, what cannot be read, who else writes.
"""

import json
import os
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import audit, canary, layout, program, reseed, sweep
from pullthrough.storage.errors import StorageInUse, StorageUnreadable
from pullthrough.storage.keeper import survey as keeper_survey
from pullthrough.storage.survey import Leak
from tests.storage_trees import (
    HOUR,
    SECOND,
    FakeClock,
    Killed,
    KillingStore,
    Tree,
    UnreadableStore,
)

NOW = 1_900_000_000 * SECOND
ZEROS = "sha256:" + "0" * 64
SILENT = program.Sayer("sweep", as_json=False, is_silent=True)
UNSWEEPABLE = {"uncovered", "beyond", "symbolicLink", "foreign"}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "storage")


def untidy(tree: Tree) -> set[str]:
    """One of each leak beside what is good; returns the classes that audit must name."""
    tree.populate()
    tree.link("x/alias", "_layers", "sha512:" + "a" * 128, tree.data(b"by sha512"))
    tree.link("x/dangling", "_layers", ZEROS)
    tree.link("x/bad", "_layers", tree.data(b"torn link"), "")
    tree.link("x/emptied", "_layers", ZEROS).unlink()
    leftover = tree.link("x/leftover", "_layers", ZEROS)
    leftover.rename(leftover.with_name("link.0190.tmp"))
    good = tree.link("a/b", "_layers", tree.data(b"shared layer"))
    good.with_name("link.0191.tmp").write_bytes(b"beside a good link")
    tree.layer("Bad/Name", b"bad name")
    tree.data(b"orphan")
    tree.data(b'{"schemaVersion": 2}')
    tree.manifest("x/tag", b"gone manifest", "latest")
    for path in (tree.repositories / "x/tag/_manifests/revisions/sha256").rglob("link"):
        path.unlink()
    index = tree.repositories / "x/tag/_manifests/tags/latest/index/sha256" / ("1" * 64) / "link"
    index.parent.mkdir(parents=True)
    index.write_text("sha256:" + "1" * 64)
    torn = tree.data(b"torn data")
    tree.link("x/torn", "_layers", torn)
    (tree.blobs / "sha256" / torn[7:9] / torn[7:] / "data").write_bytes(b"")
    changed = tree.manifest("x/changed", b"a manifest that is changed", "latest").split("@")[1]
    (tree.blobs / "sha256" / changed[7:9] / changed[7:] / "data").write_bytes(b"other bytes")
    upload = tree.repositories / "a/b/_uploads/0190/hashstates/sha256"
    upload.mkdir(parents=True)
    (upload / "0").write_bytes(b"1")
    (tree.repositories / "a/b/_uploads/0190/data").write_bytes(b"half")
    (tree.root / "scheduler-state.json.0190.tmp").write_bytes(b"{")
    (tree.blobs / "sha256/ff").mkdir(exist_ok=True)
    return {leak.value for leak in Leak} - UNSWEEPABLE


def classes(tree: Tree) -> dict[str, int]:
    report = audit.audit(tree.store, FakeClock(NOW), ttl=None)
    return {row["class"]: row["count"] for row in report["leaks"]}


def swept(tree: Tree, **options: bool) -> dict[str, object]:
    return dict(sweep.offline(tree.store, FakeClock(NOW), SILENT, **options))


def everything(tree: Tree) -> list[str]:
    return sorted(str(path.relative_to(tree.root)) for path in tree.root.rglob("*"))


def test_audit_names_every_class_and_a_sweep_ends_them(tree: Tree) -> None:
    expected = untidy(tree)
    assert set(classes(tree)) - {"uncovered"} == expected
    swept(tree)
    assert set(classes(tree)) == {"uncovered"}
    reseed.reseed(tree.store, FakeClock(NOW), ttl=HOUR, spread=None, dry_run=False)
    assert classes(tree) == {}


def test_what_can_be_served_stays_and_an_alias_gets_its_canonical_link(tree: Tree) -> None:
    tree.populate()
    before = tree.files()
    alias = tree.data(b"by sha512")
    untidy(tree)
    swept(tree)
    after = tree.files()
    canonical = f"docker/registry/v2/repositories/x/alias/_layers/sha256/{alias[7:]}/link"
    data = str(Path(layout.blob_path(alias)))
    assert after == {**before, canonical: alias.encode(), data: b"by sha512"}


def test_a_healthy_storage_is_left_alone(tree: Tree) -> None:
    tree.populate()
    (tree.repositories / "a/b/_uploads").mkdir()
    canary.plant(tree.store, "t1")
    (tree.root / "lost+found").mkdir()
    before = everything(tree)
    assert swept(tree)["changed"] is False
    assert everything(tree) == before


def test_a_fully_expired_cache_is_swept_to_nothing(tree: Tree) -> None:
    tree.populate()
    for link in tree.repositories.rglob("_layers/*/*/link"):
        link.unlink()
    for link in tree.repositories.rglob("_manifests/revisions/*/*/link"):
        link.unlink()
    swept(tree)
    assert everything(tree) == [
        "docker",
        "docker/registry",
        "docker/registry/v2",
        "docker/registry/v2/blobs",
        "docker/registry/v2/blobs/sha256",
        "docker/registry/v2/repositories",
    ]


def test_a_second_run_and_a_dry_run_change_nothing(tree: Tree) -> None:
    untidy(tree)
    before = everything(tree)
    assert swept(tree, dry_run=True)["changed"] is False
    assert everything(tree) == before
    assert swept(tree)["changed"] is True
    after = everything(tree)
    assert swept(tree)["changed"] is False
    assert everything(tree) == after


@pytest.mark.parametrize("broken", ["only/layer/_layers", "a/b/c", "_uploads", "v2/blobs/sha256"])
def test_what_cannot_be_read_aborts_with_everything_as_it_was(tree: Tree, broken: str) -> None:
    untidy(tree)
    before = everything(tree), tree.files()
    store = UnreadableStore(tree.root)
    store.broken = broken
    with pytest.raises(StorageUnreadable):
        sweep.offline(store, FakeClock(NOW), SILENT)
    assert (everything(tree), tree.files()) == before


def test_one_link_that_cannot_be_read_keeps_its_data(tree: Tree) -> None:
    key = tree.layer("only/layer", b"its only link cannot be read")
    untidy(tree)
    before = everything(tree), tree.files()
    store = UnreadableStore(tree.root)
    store.broken = f"{key.rpartition(':')[2]}/link"
    with pytest.raises(StorageUnreadable):
        sweep.offline(store, FakeClock(NOW), SILENT)
    assert (everything(tree), tree.files()) == before


def test_killed_after_any_step_the_next_run_ends_the_same(tmp_path: Path) -> None:
    undisturbed = Tree(tmp_path / "undisturbed")
    untidy(undisturbed)
    swept(undisturbed)
    for survive in range(500):
        tree = Tree(tmp_path / str(survive))
        good = tree.populate()
        untidy(tree)
        try:
            sweep.offline(KillingStore(tree.root, survive), FakeClock(NOW), SILENT)
        except Killed:
            links = {key for key in good if _is_served(tree, key)}
            assert links == set(good)
            swept(tree)
            finished = False
        else:
            finished = True
        assert everything(tree) == everything(undisturbed)
        assert tree.files() == undisturbed.files()
        if finished:
            assert survive > 30
            return
    pytest.fail("sweep never finished")


def _is_served(tree: Tree, key: str) -> bool:
    digest = key.rpartition("@")[2]
    return (tree.root / layout.blob_path(digest)).stat().st_size > 0


def test_a_symbolic_link_is_named_and_nothing_behind_it_is_touched(
    tree: Tree, tmp_path: Path
) -> None:
    tree.populate()
    outside = Tree(tmp_path / "outside")
    outside.populate()
    (outside.repositories / "a/b/_uploads/1").mkdir(parents=True)
    (outside.repositories / "a/b/_uploads/1/data").write_bytes(b"half")
    kept = outside.files()
    (tree.repositories / "far").symlink_to(outside.repositories)
    assert classes(tree)["symbolicLink"] == 1
    before = tree.files()
    with pytest.raises(StorageUnreadable, match="symbolic link"):
        swept(tree)
    assert (tree.files(), outside.files()) == (before, kept)


def test_a_symbolic_link_where_nothing_belongs_is_left_and_named(tree: Tree) -> None:
    key = tree.layer("a/b", b"a layer")
    directory = tree.root / layout.blob_directory(key.rpartition("@")[2])
    (directory / "more.tmp").symlink_to(tree.root)
    swept(tree)
    assert classes(tree) == {"symbolicLink": 1, "uncovered": 1}


def test_names_that_are_not_utf8_are_reported_and_crash_nobody(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.populate()
    base = os.fsencode(tree.repositories)
    link = os.path.join(base, b"\xff\xfe/_layers/sha256", b"0" * 64)
    os.makedirs(link)
    Path(os.fsdecode(link), "link").write_text(ZEROS)
    os.makedirs(os.path.join(base, b"a/b/_layers/sha256/\xff"))
    where = ["--storage", str(tree.root)]
    assert cli.main(["audit", *where]) == 1
    assert cli.main(["audit", *where, "--json", "--repositories"]) == 1
    out = capsys.readouterr().out
    assert "\\xff" in out
    rows = {row["class"]: row for row in json.loads(out.splitlines()[-1])["leaks"]}
    assert rows["badName"]["count"] == 1
    assert rows["foreign"]["count"] == 1
    tree.age()
    assert cli.main(["sweep", *where]) == 0
    assert cli.main(["sweep", *where, "--json"]) == 0
    assert set(classes(tree)) == {"uncovered", "foreign"}


# --- who else writes -------------------------------------------------------------------------------


class BusyStore(KillingStore):
    """A registry writes while this one reads: `deed` happens at the first look at the state."""

    deed = staticmethod(lambda: None)
    done = False

    def read(self, path: str, limit: int = 1 << 62) -> bytes | None:
        content = super().read(path, limit)
        if path == layout.STATE and not self.done:
            self.done = True
            type(self).deed()
        return content


DEEDS = {
    "saves its state": lambda tree: tree.state_path.write_bytes(b'{"new": 1}'),
    "begins a fill": lambda tree: (tree.repositories / "a/b/_uploads/0199").mkdir(parents=True),
    "grows a fill": lambda tree: (tree.repositories / "a/b/_uploads/0/data").write_bytes(b"more"),
    "fills a blob": lambda tree: tree.data(b"a new one"),
    "serves a tag": lambda tree: (
        tree.repositories / "a/b/_manifests/tags/latest/current/link"
    ).write_text(ZEROS),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
@pytest.mark.parametrize("command", ["sweep", "reseed"])
def test_a_registry_that_writes_is_noticed_before_anything_is_changed(
    tree: Tree, deed: object, command: str
) -> None:
    untidy(tree)
    (tree.repositories / "a/b/_uploads/0").mkdir()
    (tree.repositories / "a/b/_uploads/0/data").write_bytes(b"a")
    tree.age(60)
    BusyStore.deed = staticmethod(lambda: deed(tree))  # type: ignore[operator]
    store = BusyStore(tree.root, survive=0)
    run = {
        "sweep": lambda: sweep.offline(store, FakeClock(NOW), SILENT),
        "reseed": lambda: reseed.reseed(
            store, FakeClock(NOW), ttl=HOUR, spread=None, dry_run=False
        ),
    }[command]
    with pytest.raises(StorageInUse, match="stop it first"):
        run()


def test_after_a_recent_fill_it_waits_until_a_registry_would_have_saved(tree: Tree) -> None:
    untidy(tree)
    clock = FakeClock(max(path.stat().st_mtime_ns for path in tree.blobs.rglob("*")) + SECOND)
    began = clock.time
    sweep.offline(tree.store, clock, SILENT)
    assert clock.time - began == 6 * SECOND


# --- online ----------------------------------------------------------------------------------------


def test_online_the_link_goes_first_and_its_data_in_a_later_pass(tree: Tree) -> None:
    untidy(tree)
    before = tree.files()
    clock = FakeClock(NOW)
    done = sweep.online(tree.store, clock, SILENT)
    assert set(done["removed"]) == set(classes(tree) | done["removed"]) - {
        "uncovered",
        "emptied",
        "alias",
        "badName",
    }
    assert clock.time - NOW >= 3 * sweep.DELAY
    after = tree.files()
    assert {path: before[path] for path in after} == after
    kinds = tree.populate()
    assert tree.files().keys() - after.keys() == set()
    assert all(_is_served(tree, key) for key in kinds)


def test_online_nothing_young_is_touched(tree: Tree) -> None:
    untidy(tree)
    before = tree.files()
    youngest = max(path.stat().st_mtime_ns for path in tree.root.rglob("*"))
    sweep.online(tree.store, FakeClock(youngest + HOUR // 2), SILENT)
    assert tree.files() == before


def test_online_dry_run_changes_nothing_and_waits_for_nothing(tree: Tree) -> None:
    untidy(tree)
    before = tree.files()
    clock = FakeClock(NOW)
    sweep.online(tree.store, clock, SILENT, dry_run=True)
    assert (tree.files(), clock.time) == (before, NOW)


def test_every_class_of_the_keeper_has_a_name_that_all_use() -> None:
    names = {sweep.name_of(leak) for leak in keeper_survey.Leak}
    assert names - {leak.value for leak in Leak} == {"expired", "jobState"}


def test_the_command_line_refuses_what_is_unsafe(tree: Tree) -> None:
    where = ["sweep", "--storage", str(tree.root)]
    for wrong in [["--online", "--min-age", "59m"], ["--min-age", "2h"], ["--nonsense"]]:
        with pytest.raises(SystemExit) as ended:
            cli.main([*where, *wrong])
        assert ended.value.code == 2
    assert cli.main([*where, "--dry-run"]) == 0
    assert cli.main(["sweep", "--storage", str(tree.root / "nowhere")]) == 1
