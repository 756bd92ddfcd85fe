"""What lies on the storage: the schedulable set, every kind of leak, audit's and reseed's answers."""

import json
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import audit, reseed, survey
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.survey import Leak
from tests.storage_trees import HOUR, SECOND, FakeClock, Tree, UnreadableStore

NOW = 1_800_000_000 * SECOND
ZEROS = "sha256:" + "0" * 64


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "storage")


def test_the_artifacts_are_what_a_fresh_registry_has_as_entries(tree: Tree) -> None:
    kinds = tree.populate()
    found = survey.read_artifacts(tree.store)
    assert found.artifacts == kinds
    assert found.leaks == {}


def test_every_leak_is_told_from_the_others(tree: Tree) -> None:
    kept = tree.populate()
    alias = "sha512:" + "a" * 128
    data = tree.data(b"by sha512")
    tree.link("x/alias", "_layers", alias, data)
    tree.link("x/dangling", "_layers", ZEROS)
    tree.link("x/bad", "_layers", tree.data(b"torn link"), "")
    tree.link("x/garbage", "_manifests/revisions", tree.data(b"garbage"), "not a digest")
    tree.link("x/emptied", "_layers", ZEROS).unlink()
    leftover = tree.link("x/leftover", "_layers", ZEROS)
    leftover.rename(leftover.with_name("link.0190.tmp"))
    tree.link("Bad/Name", "_layers", tree.data(b"bad name"))
    tree.data(b"orphan")
    tree.manifest("x/tag", b"gone manifest", "latest")
    gone = tree.repositories / "x/tag/_manifests/revisions/sha256"
    for path in gone.rglob("link"):
        path.unlink()
    torn = tree.data(b"torn data")
    tree.link("x/torn", "_layers", torn)
    (tree.blobs / "sha256" / torn[7:9] / torn[7:] / "data").write_bytes(b"")
    tree.layer("x/empty", b"")
    (tree.root / "scheduler-state.json.0190.tmp").write_bytes(b"")
    report = audit.audit(tree.store, FakeClock(NOW), ttl=None)
    assert {row["class"]: row["count"] for row in report["leaks"]} == {
        "uncovered": len(kept) + 3,
        "badName": 1,
        "badLink": 2,
        "alias": 1,
        "dangling": 1,
        "emptied": 3,
        "orphan": 4,
        "torn": 1,
        "deadTag": 1,
        "temporary": 2,
    }
    assert all(row["examples"] and row["remedy"] for row in report["leaks"])


def test_a_digest_linked_as_blob_and_manifest_is_one_artifact_of_either_kind(tree: Tree) -> None:
    key = tree.manifest("a/b", b"manifest asked for as a blob")
    tree.layer("a/b", b"manifest asked for as a blob")
    found = survey.read_artifacts(tree.store)
    assert found.artifacts == {key: 0}
    assert found.either_kind == {key}


def test_an_unreadable_link_aborts_with_everything_as_it_was(tree: Tree) -> None:
    tree.populate()
    before = tree.files()
    for broken in ["only/layer/_layers", "a/b/c"]:
        store = UnreadableStore(tree.root)
        store.broken = broken
        with pytest.raises(StorageUnreadable):
            reseed.reseed(store, FakeClock(NOW), ttl=HOUR, spread=None, dry_run=False)
    assert tree.files() == before


def test_a_file_among_the_link_directories_is_no_link(tree: Tree) -> None:
    kinds = tree.populate()
    algorithm = tree.repositories / "a/b/_layers/sha256"
    (algorithm / ("f" * 64)).write_bytes(b"a stray file")
    (algorithm / "lost+found").mkdir()
    (tree.repositories / "a/b/_layers/md5").mkdir()
    assert survey.read_artifacts(tree.store).artifacts == kinds


def test_reseed_covers_everything_and_a_second_run_changes_nothing(tree: Tree) -> None:
    kinds = tree.populate()
    done = reseed.reseed(tree.store, FakeClock(NOW), ttl=HOUR, spread=None, dry_run=False)
    assert (done["entries"], done["added"]) == (len(kinds), len(kinds))
    written = tree.state_path.read_bytes()
    assert {key: entry["EntryType"] for key, entry in tree.state().items()} == kinds
    again = reseed.reseed(tree.store, FakeClock(NOW + SECOND), ttl=HOUR, spread=None, dry_run=False)
    assert again["changed"] == 0
    assert tree.state_path.read_bytes() == written
    report = audit.audit(tree.store, FakeClock(NOW), ttl=HOUR)
    assert (report["leaks"], report["covered"]) == ([], len(kinds))


def test_reseed_dry_run_writes_nothing_and_a_malformed_state_is_kept_aside(tree: Tree) -> None:
    tree.populate()
    tree.state_path.write_bytes(b'{"torn')
    before = tree.files()
    arguments = {"ttl": HOUR, "spread": None}
    dry = reseed.reseed(tree.store, FakeClock(NOW), **arguments, dry_run=True)  # type: ignore[arg-type]
    assert dry["malformed"] is True
    assert tree.files() == before
    reseed.reseed(tree.store, FakeClock(NOW), **arguments, dry_run=False)  # type: ignore[arg-type]
    assert tree.files()["pullthrough/scheduler-state.malformed.json"] == b'{"torn'


def test_the_command_line_says_what_leaks_and_how_it_ends(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--storage", str(tree.root)]
    assert cli.main(["audit", *where]) == 0
    kinds = tree.populate()
    assert cli.main(["audit", *where, "--json"]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["version"] == 1
    assert [(row["class"], row["count"]) for row in report["leaks"]] == [("uncovered", len(kinds))]
    tree.age()
    assert cli.main(["reseed", *where, "--ttl", "168h"]) == 0
    assert f"{len(kinds)} entries" in capsys.readouterr().out
    assert cli.main(["audit", *where]) == 0
    assert cli.main(["audit", "--storage", str(tree.root / "nowhere")]) == 2
    assert cli.main(["reseed", "--storage", str(tree.root / "nowhere"), "--ttl", "1h"]) == 1
    assert cli.main(["nonsense"]) == 2
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert cli.main(["--version"]) == 0
    for wrong in ["168", "1d", "59s", "-1h"]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["reseed", *where, f"--ttl={wrong}"])
        assert ended.value.code == 2


def test_audit_explains_every_leak() -> None:
    assert set(survey.EXPLANATIONS) == set(Leak)
