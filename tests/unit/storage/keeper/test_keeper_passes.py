"""Passes of the keeper over a storage. What decides: what lies there, how old it is, what the passes before saw,
what the TTL state says, and what cannot be read. A pass is `Keeper.sweep`; the clock is a value."""

import json
import os
from dataclasses import replace as changed
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pullthrough.storage import canary, layout
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.keeper import report, survey
from pullthrough.storage.keeper.metrics import exposition
from pullthrough.storage.keeper.program import Board, Keeper
from pullthrough.storage.keeper.settings import Settings
from pullthrough.storage.keeper.watch import Canary
from pullthrough.storage.store import FileStore
from tests.storage_trees import HOUR, SECOND, FakeClock, Tree, UnreadableStore

MINUTE = 60 * SECOND
TTL = 24 * HOUR
NOW = 1_900_000_000 * SECOND
"""Years after the files' own times: everything is old, but for what a test makes young."""
OPTIONS = Settings(
    storage="",
    series="v3",
    ttl=TTL,
    upstream_url="http://upstream.test",
    registry=("127.0.0.1", 5000),
    listen=("127.0.0.1", 5002),
    template="",
    sweep_interval=10 * MINUTE,
    minimum_age=HOUR,
    upload_age=24 * HOUR,
    data_delay=MINUTE,
    state_interval=2 * MINUTE,
    backstop_margin=10 * MINUTE,
    probe_interval=30 * SECOND,
    rate=1000.0,
)


class Scene:
    """A storage, a keeper and its clock."""

    def __init__(
        self, root: Path, options: Settings = OPTIONS, store: FileStore | None = None
    ) -> None:
        self.tree = Tree(root)
        self.clock = FakeClock(NOW)
        self.board = Board()
        self.store = store or self.tree.store
        self.options = options
        self.keeper = self.new_keeper()

    def new_keeper(self) -> Keeper:
        return Keeper(self.options, self.store, self.clock, self.board)

    def passes(self, number: int = 1, apart: int = 10 * MINUTE) -> list[str]:
        """That many passes; the files that went."""
        before = set(self.tree.files())
        for _ in range(number):
            self.keeper.sweep()
            self.clock.time += apart
        return sorted(before - set(self.tree.files()))

    def cover(self, keys: object, expiry: int = NOW + TTL) -> None:
        """A TTL state with these keys."""
        assert isinstance(keys, dict)
        when = datetime.fromtimestamp(expiry // SECOND, UTC).isoformat()
        self.tree.state_path.write_text(
            json.dumps(
                {
                    key: {"Key": key, "ExpiryData": when, "EntryType": kind}
                    for key, kind in keys.items()
                }
            )
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "storage")


def data_path(digest: str) -> str:
    return layout.blob_path(digest)


def test_a_healthy_cache_loses_nothing(scene: Scene) -> None:
    scene.cover(scene.tree.populate())
    assert scene.passes(10) == []
    latest = scene.board.latest()
    assert (latest.artifacts, latest.covered, latest.uncovered) == (14, 14, 0)


def test_the_payload_of_an_expired_manifest_goes_in_the_second_pass_that_sees_it(
    scene: Scene,
) -> None:
    scene.cover({})
    payload = scene.tree.data(b'{"schemaVersion": 2}')
    assert scene.passes(1) == []
    assert scene.passes(1) == [data_path(payload)]
    assert dict(scene.board.latest().totals) == {"payload": 1}


def test_data_is_removed_only_after_the_delay_however_often_passes_come(scene: Scene) -> None:
    scene.cover({})
    orphan = scene.tree.data(b"an orphan layer")
    assert scene.passes(5, apart=11 * SECOND) == []
    assert scene.passes(2, apart=11 * SECOND) == [data_path(orphan)]


def test_young_data_stays(scene: Scene) -> None:
    scene.cover({})
    path = scene.tree.root / data_path(scene.tree.data(b"just written"))
    scene.clock.time = path.stat().st_ctime_ns + 10 * MINUTE
    assert scene.passes(4) == [], "the last pass came 40 minutes after the write"
    scene.clock.time += HOUR
    assert len(scene.passes(1)) == 1


def test_an_old_mtime_does_not_make_data_old(scene: Scene) -> None:
    """A fill over existing data does not renew its mtime; the ctime of data that was just put there is young."""
    scene.cover({})
    path = scene.tree.root / data_path(scene.tree.data(b"restored with its old time"))
    os.utime(path, (0, 0))
    scene.clock.time = path.stat().st_ctime_ns + 1
    assert scene.passes(3) == []


def test_data_that_is_linked_again_between_the_passes_stays(scene: Scene) -> None:
    content = b"asked for again"
    digest = scene.tree.data(content)
    scene.cover({f"library/new@{digest}": 0})
    scene.passes(1)
    scene.tree.link("library/new", "_layers", digest)
    assert scene.passes(3) == []


class RelinkingStore(FileStore):
    """A registry that links data in the instant in which the walk is over and its removal begins."""

    tree: Tree
    digest = ""
    armed = False

    def names(self, directory: str) -> list[str] | None:
        found = super().names(directory)
        if self.armed and directory == layout.BLOBS:
            self.tree.link("library/other", "_layers", self.digest)
        return found


def test_data_that_is_linked_after_the_walk_is_seen_at_the_last_look(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "storage")
    store = RelinkingStore(tree.root)
    scene = Scene(tree.root, store=store)
    scene.cover({})
    tree.link("library/other", "_layers", tree.data(b"something else"))
    store.tree, store.digest = tree, tree.data(b"orphan until the last moment")
    scene.passes(1)
    store.armed = True
    assert data_path(store.digest) not in scene.passes(1)


def test_a_dangling_link_goes_by_unlink_and_its_directory_stays(scene: Scene) -> None:
    scene.cover({})
    link = scene.tree.link("a/b", "_layers", "sha256:" + "0" * 64)
    assert scene.passes(1) == []
    scene.passes(1)
    assert not link.exists()
    assert link.parent.is_dir(), "directories are pruned only before a start"


def test_a_bad_link_goes_only_if_it_is_the_same_at_the_second_look(scene: Scene) -> None:
    scene.cover({})
    link = scene.tree.link("a/b", "_layers", "sha256:" + "0" * 64, content="")
    scene.passes(1)
    link.write_text("")  # still being written, on 2.8
    assert scene.passes(1) == []
    scene.passes(1)
    assert not link.exists()


def test_torn_data_loses_its_link_first_and_goes_later(scene: Scene) -> None:
    key = scene.tree.layer("a/b", b"torn")
    scene.cover({key: 0})
    digest = key.split("@")[1]
    (scene.tree.root / data_path(digest)).write_bytes(b"")
    link = layout.link_path(layout.Artifact("a/b", digest, layout.Kind.BLOB))
    assert scene.passes(2) == [link]
    assert scene.passes(2) == [data_path(digest)]


def test_the_blob_of_no_bytes_may_be_empty(scene: Scene) -> None:
    scene.cover({scene.tree.layer("a/b", b""): 0})
    assert scene.passes(4) == []


def test_tags_of_a_manifest_that_is_gone_lose_their_links_one_by_one(scene: Scene) -> None:
    key = scene.tree.manifest("a/b", b"still here", tag="kept")
    scene.cover({key: 1})
    gone = "sha256:" + "1" * 64
    tag = scene.tree.repositories / "a/b/_manifests/tags/gone"
    for path in (tag / "current/link", tag / "index/sha256" / ("1" * 64) / "link"):
        path.parent.mkdir(parents=True)
        path.write_text(gone)
    assert len(scene.passes(2)) == 2
    assert tag.is_dir()
    assert (scene.tree.repositories / "a/b/_manifests/tags/kept/current/link").exists()


def test_uploads_and_temporary_files_go_a_day_after_their_newest_file(scene: Scene) -> None:
    scene.cover({})
    upload = scene.tree.repositories / "a/b/_uploads/0c9e1b9a"
    upload.mkdir(parents=True)
    (upload / "startedat").write_text("long ago")
    (upload / "data").write_text("half")
    (scene.tree.root / "scheduler-state.json.0c9e1b9a.tmp").write_text("{")
    scene.clock.time = (upload / "data").stat().st_ctime_ns + 23 * HOUR
    assert scene.passes(3) == []
    scene.clock.time += 2 * HOUR
    assert len(scene.passes(1)) == 3
    assert upload.is_dir()


def test_a_directory_that_cannot_be_read_ends_the_pass(tmp_path: Path) -> None:
    store = UnreadableStore(Tree(tmp_path / "storage").root)
    scene = Scene(tmp_path / "storage", store=store)
    scene.cover({})
    scene.tree.data(b"an orphan")
    scene.tree.layer("a/b", b"a layer")
    scene.passes(1)
    store.broken = "a/b/_layers"
    with pytest.raises(StorageUnreadable):
        scene.keeper.sweep()


def test_data_of_a_link_that_cannot_be_read_stays(tmp_path: Path) -> None:
    store = UnreadableStore(Tree(tmp_path / "storage").root)
    scene = Scene(tmp_path / "storage", store=store)
    key = scene.tree.layer("a/b", b"a layer")
    orphan = scene.tree.data(b"an orphan")
    scene.cover({key: 0})
    store.broken = key.rsplit(":", 1)[1] + "/link"
    assert scene.passes(4) == [data_path(orphan)]
    assert "Input/output error" in scene.board.latest().last_error


# -- the backstop --------------------------------------------------------------------------------------------------------


def test_what_no_entry_covers_goes_after_the_ttl_on_two_good_reads_link_first(scene: Scene) -> None:
    kinds = scene.tree.populate()
    forgotten = scene.tree.layer("library/alpine", b"filled just before a kill")
    scene.cover(kinds)
    digest = forgotten.split("@")[1]
    link = layout.link_path(layout.Artifact("library/alpine", digest, layout.Kind.BLOB))
    assert scene.passes(1) == []
    assert scene.board.latest().uncovered == 1
    assert scene.passes(1) == [link]
    assert scene.passes(1) == []
    assert scene.passes(1) == [data_path(digest)]
    assert scene.board.latest().uncovered == 0


def test_what_no_entry_covers_stays_while_it_is_younger_than_ttl_and_margin(scene: Scene) -> None:
    forgotten = scene.tree.layer("library/alpine", b"filled just before a kill")
    scene.cover({})
    link = (
        scene.tree.repositories
        / "library/alpine/_layers/sha256"
        / forgotten.rsplit(":", 1)[1]
        / "link"
    )
    scene.clock.time = link.stat().st_ctime_ns + TTL
    assert scene.passes(1) == []
    assert scene.passes(1, apart=1) == [], "the margin is not over"
    assert len(scene.passes(1)) == 1


@pytest.mark.parametrize("torn", ["", "{", "null", "[]"], ids=["empty", "cut", "null", "a list"])
def test_a_read_that_is_not_good_proves_nothing(scene: Scene, torn: str) -> None:
    scene.tree.populate()
    scene.tree.state_path.write_text(torn)
    assert scene.passes(6) == []
    assert scene.board.latest().uncovered is None
    assert not scene.board.latest().needs_prepare


def test_two_reads_closer_than_the_interval_are_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "storage", changed(OPTIONS, state_interval=30 * MINUTE))
    scene.tree.layer("library/alpine", b"forgotten")
    scene.cover({})
    assert scene.passes(3) == []
    assert len(scene.passes(1)) == 1


def test_a_lost_state_is_reported_and_nothing_is_removed_for_want_of_entries(scene: Scene) -> None:
    for number in range(20):
        scene.tree.layer("library/alpine", f"layer {number}".encode())
    scene.cover({})
    assert scene.passes(1) == []
    assert not scene.board.latest().needs_prepare, "one read is not two"
    assert scene.passes(10) == []
    assert scene.board.latest().needs_prepare
    scene.cover({f"library/alpine@{d}": 0 for d in _layers(scene.tree)})
    scene.passes(1)
    assert not scene.board.latest().needs_prepare


def test_a_state_file_that_stays_away_is_reported_and_nothing_is_removed(scene: Scene) -> None:
    scene.tree.populate()
    assert scene.passes(6) == []
    assert scene.board.latest().needs_prepare


def test_an_overdue_entry_is_overdue_and_not_uncovered(scene: Scene) -> None:
    scene.cover(scene.tree.populate(), expiry=NOW - HOUR)
    assert scene.passes(4) == []
    assert (scene.board.latest().overdue, scene.board.latest().uncovered) == (14, 0)


def test_with_collection_off_nothing_is_too_old(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "storage", changed(OPTIONS, ttl=None))
    scene.tree.populate()
    assert scene.passes(6) == []
    assert scene.board.latest().uncovered is None
    assert not scene.board.latest().needs_prepare


# -- canary, repair ------------------------------------------------------------------------------------------------------


def plant_canary(scene: Scene) -> str:
    canary.plant(scene.store, "seed")
    digest = canary.artifact("seed").digest
    start = {
        "template": "t",
        "series": "v3",
        "gc": "Enabled",
        "ttl": "24h",
        "time": "",
        "canary": digest,
    }
    (scene.tree.root / "pullthrough").mkdir(exist_ok=True)
    (scene.tree.root / "pullthrough/start.json").write_text(
        json.dumps({**start, "uncovered": 0, "problem": None})
    )
    return digest


def test_the_canary_passes_when_link_and_data_are_gone(scene: Scene) -> None:
    digest = plant_canary(scene)
    scene.keeper.tick(port_was_open=False, opened=None)
    assert scene.board.latest().canary is Canary.PENDING
    opened = scene.clock.now()
    link = scene.tree.root / layout.link_path(canary.artifact("seed"))
    link.unlink()
    scene.keeper.tick(port_was_open=True, opened=opened)
    assert scene.board.latest().canary is Canary.PENDING, "its data is still there"
    (scene.tree.root / data_path(digest)).unlink()
    scene.keeper.tick(port_was_open=True, opened=opened)
    assert scene.board.latest().canary is Canary.PASSED


def test_the_canary_fails_a_minute_after_the_port_opened(scene: Scene) -> None:
    plant_canary(scene)
    opened = scene.clock.now()
    scene.clock.time += 59 * SECOND
    scene.keeper.tick(port_was_open=True, opened=opened)
    assert scene.board.latest().canary is Canary.PENDING
    scene.clock.time += 1 * SECOND
    scene.keeper.tick(port_was_open=True, opened=opened)
    assert scene.board.latest().canary is Canary.FAILED


def test_the_sweep_leaves_the_canary_to_the_scheduler(scene: Scene) -> None:
    digest = plant_canary(scene)
    scene.cover({})
    assert scene.passes(4) == []
    (scene.tree.root / layout.link_path(canary.artifact("seed"))).unlink()
    assert scene.passes(4) == [], f"{digest} is half gone: that is what must be seen"
    assert scene.board.latest().artifacts == 0


# -- what a start could not do, what Jobs left ---------------------------------------------------------------------------


def write_start(scene: Scene, **content: object) -> None:
    start = {"template": "t", "series": "v3", "gc": "Enabled", "ttl": "24h", "time": ""}
    (scene.tree.root / "pullthrough").mkdir(exist_ok=True)
    (scene.tree.root / "pullthrough/start.json").write_text(
        json.dumps({**start, "canary": None, "uncovered": 0, "problem": None, **content})
    )


def told(scene: Scene) -> tuple[object, ...]:
    said = report.as_json(scene.board.latest(), 0)
    return tuple(said[n] for n in ("uncovered", "startUncovered", "startProblem", "problem"))


def test_what_the_start_could_not_cover_is_told_until_a_walk_knows_better(scene: Scene) -> None:
    key = scene.tree.layer("a/b", b"a layer")
    assert told(scene) == (None, None, None, None)
    write_start(scene, uncovered=7, problem="No space left on device")
    scene.keeper.tick(port_was_open=True, opened=NOW)
    assert told(scene) == (7, 7, "No space left on device", "No space left on device")
    scene.tree.state_path.write_text("{")
    scene.passes(1)
    scene.keeper.tick(port_was_open=True, opened=NOW)
    assert told(scene)[0] == 7, "a read that is not good proves nothing"
    scene.cover({key: 0})
    scene.passes(1)
    scene.keeper.tick(port_was_open=True, opened=NOW)
    assert told(scene) == (0, None, None, None)


def test_a_state_that_is_missing_covers_nothing(scene: Scene) -> None:
    kinds = scene.tree.populate()
    write_start(scene, uncovered=len(kinds), problem="No space left on device")
    scene.keeper.tick(port_was_open=True, opened=NOW)
    scene.passes(1)
    assert told(scene) == (len(kinds), None, None, None)
    metrics = exposition(scene.board.latest)().decode()
    assert f"pullthrough_keeper_uncovered_artifacts {len(kinds)}.0" in metrics


def test_the_record_of_another_start_says_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "storage", changed(OPTIONS, template="mine"))
    write_start(scene, template="another's", uncovered=7, problem="a problem")
    scene.keeper.tick(port_was_open=True, opened=NOW)
    assert told(scene) == (None, None, None, None)


def test_results_of_jobs_that_nobody_installed_go_after_two_hours(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "storage", changed(OPTIONS, ttl=None))
    results = [scene.tree.root / f"scheduler-state.next.job{n}.json" for n in range(3)]
    for result in results:
        result.write_bytes(b"{}")
        os.utime(result, (0, 0))
    scene.clock.time = results[-1].stat().st_ctime_ns + 100 * MINUTE
    assert scene.passes(2) == []
    assert scene.passes(2) == [result.name for result in results]
    assert dict(scene.board.latest().totals) == {"jobState": 3}


def test_after_a_mass_expiry_only_so_many_suspects_are_remembered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MOST", 3)
    scene.cover({})
    for number in range(10):
        scene.tree.data(f"orphan {number}".encode())
    scene.passes(1)
    assert scene.keeper.has_more, "the next pass comes soon"
    found = scene.board.latest().leaks[survey.Leak.ORPHAN]
    assert (found.count, found.bytes, len(found.examples)) == (10, 80, 3)
    assert [len(scene.passes(1)) for _ in range(8)] == [3, 0, 3, 0, 3, 0, 1, 0]
    assert not scene.keeper.has_more


def ticks(scene: Scene, seconds: int, *, port_was_open: bool = False) -> None:
    for _ in range(seconds):
        scene.keeper.tick(port_was_open=port_was_open, opened=None)
        scene.clock.time += SECOND


def test_a_torn_state_is_rebuilt_after_three_minutes_behind_a_closed_port(scene: Scene) -> None:
    kinds = scene.tree.populate()
    scene.tree.state_path.write_bytes(b"")
    ticks(scene, 180)
    assert scene.tree.state_path.read_bytes() == b""
    ticks(scene, 3)
    rebuilt = scene.tree.state()
    assert {key: entry["EntryType"] for key, entry in rebuilt.items()} == kinds
    assert scene.board.latest().repairs == 1


def test_a_rebuilt_state_covers_what_cannot_be_read_just_now(tmp_path: Path) -> None:
    store = UnreadableStore(Tree(tmp_path / "storage").root)
    scene = Scene(tmp_path / "storage", store=store)
    kinds = scene.tree.populate()
    store.broken = next(iter(kinds)).rsplit(":", 1)[1] + "/link"
    scene.tree.state_path.write_bytes(b"")
    ticks(scene, 183)
    assert scene.tree.state().keys() == kinds.keys()


def test_a_torn_state_is_left_to_a_registry_whose_port_opened_in_between(scene: Scene) -> None:
    scene.tree.populate()
    scene.tree.state_path.write_bytes(b"{")
    ticks(scene, 170)
    ticks(scene, 1, port_was_open=True)
    ticks(scene, 170)
    assert scene.tree.state_path.read_bytes() == b"{"


def test_a_torn_state_that_changes_is_being_written(scene: Scene) -> None:
    scene.tree.populate()
    scene.tree.state_path.write_bytes(b"{")
    ticks(scene, 170)
    scene.tree.state_path.write_bytes(b'{"')
    ticks(scene, 170)
    assert scene.tree.state_path.read_bytes() == b'{"'


def test_a_good_state_behind_a_closed_port_is_not_touched(scene: Scene) -> None:
    scene.cover(scene.tree.populate())
    before = scene.tree.state_path.read_bytes()
    ticks(scene, 400)
    assert scene.tree.state_path.read_bytes() == before


def _layers(tree: Tree) -> list[str]:
    return [f"sha256:{p.parent.name}" for p in tree.repositories.rglob("link")]
