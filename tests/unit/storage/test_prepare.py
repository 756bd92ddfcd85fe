"""Before each start. What decides: the marker, start.json, the Job's file, the state file, the names
on the storage, the mode, ttl and template wanted, and what fails on the way."""

import json
import os
from dataclasses import replace as changed
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import audit, canary, migrate, prepare, state
from pullthrough.storage.errors import (
    MemoryLimitTooLow,
    StorageBelongsToOtherUpstream,
    StorageFull,
    StorageMarkerMalformed,
    StorageMarkerNewer,
    StorageUnmarked,
    StorageUnreadable,
)
from tests.storage_trees import (
    HOUR,
    SECOND,
    CountingStore,
    FakeClock,
    FullStore,
    Tree,
    UnreadableStore,
)

TTL = 24 * HOUR
ON = prepare.Options(series="v3", gc="Enabled", ttl=TTL, host="docker.io", template="t1")
OFF = changed(ON, gc="Disabled", template="t0")
JOB = "0c9e1b9a-0000-4000-8000-000000000001"
MIGRATED = changed(ON, migration=JOB)
CANARY_KEYS = {canary.key("t1"), canary.key(JOB)}


@pytest.fixture
def clock() -> FakeClock:
    # The files' own times are the system's; a clock behind them would be another test.
    return FakeClock(state.SECOND * 1_900_000_000)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "storage")
    made.mark()
    return made


def migrated(tree: Tree, clock: FakeClock, **options: object) -> None:
    given = {"ttl": TTL, "host": "docker.io", "job": JOB, **options}
    migrate.migrate(tree.store, clock, migrate.Options(**given))  # type: ignore[arg-type]


def expiries(tree: Tree) -> dict[str, int]:
    entries = state.parse(tree.state_path.read_bytes()).entries
    return {key: entry.expiry for key, entry in entries.items() if key not in CANARY_KEYS}


# --- whose storage it is ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [ON, OFF])
def test_empty_storage_is_marked(
    tmp_path: Path, clock: FakeClock, options: prepare.Options
) -> None:
    tree = Tree(tmp_path / "storage")
    (tree.root / "lost+found").mkdir()
    prepare.prepare(tree.store, clock, options)
    marker = json.loads((tree.root / "pullthrough/marker.json").read_bytes())
    assert marker == {"format": 1, "upstreamHost": "docker.io"}


@pytest.mark.parametrize("options", [ON, OFF])
def test_storage_of_another_upstream_is_refused_and_left_as_it_was(
    tree: Tree, clock: FakeClock, options: prepare.Options
) -> None:
    tree.populate()
    tree.mark("ghcr.io")
    before = tree.files()
    with pytest.raises(StorageBelongsToOtherUpstream, match=r"ghcr\.io"):
        prepare.prepare(tree.store, clock, options)
    with pytest.raises(StorageBelongsToOtherUpstream):
        migrated(tree, clock)
    assert tree.files() == before


def test_unmarked_content_is_refused_unless_adopted(tmp_path: Path, clock: FakeClock) -> None:
    tree = Tree(tmp_path / "storage")
    kinds = tree.populate()
    before = tree.files()
    with pytest.raises(StorageUnmarked, match="--adopt-unmarked"):
        prepare.prepare(tree.store, clock, ON)
    with pytest.raises(StorageUnmarked):
        migrated(tree, clock)
    assert tree.files() == before
    prepare.prepare(tree.store, clock, changed(ON, adopt_unmarked=True))
    assert expiries(tree).keys() == kinds.keys()
    prepare.prepare(tree.store, clock, ON)


@pytest.mark.parametrize("content", [b"", b'{"format":1,"upst', b"[]", b'{"format":1}', b"\xff"])
def test_a_marker_that_cannot_be_understood_is_named_as_such(
    tree: Tree, clock: FakeClock, content: bytes
) -> None:
    path = tree.root / "pullthrough/marker.json"
    path.write_bytes(content)
    prepare.prepare(tree.store, clock, ON)
    assert json.loads(path.read_bytes())["upstreamHost"] == "docker.io", "there was nothing yet"
    tree.populate()
    path.write_bytes(content)
    before = tree.files()
    with pytest.raises(StorageMarkerMalformed, match=r"marker\.json cannot be understood"):
        prepare.prepare(tree.store, clock, ON)
    with pytest.raises(StorageMarkerMalformed):
        migrated(tree, clock)
    assert tree.files() == before
    prepare.prepare(tree.store, clock, changed(ON, adopt_unmarked=True))
    prepare.prepare(tree.store, clock, ON)


@pytest.mark.parametrize("adopt", [False, True])
def test_a_marker_of_a_later_version_is_refused_even_where_content_may_be_adopted(
    tree: Tree, clock: FakeClock, adopt: bool
) -> None:
    (tree.root / "pullthrough/marker.json").write_text('{"format": 2, "upstreamHost": "docker.io"}')
    before = tree.files()
    with pytest.raises(StorageMarkerNewer, match="format 2"):
        prepare.prepare(tree.store, clock, changed(ON, adopt_unmarked=adopt))
    assert tree.files() == before


# --- garbage collection off ------------------------------------------------------------------------


def test_off_removes_the_state_of_v3_and_empties_that_of_v2(tree: Tree, clock: FakeClock) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    prepare.prepare(tree.store, clock, OFF)
    assert not tree.state_path.exists()
    prepare.prepare(tree.store, clock, ON)
    prepare.prepare(tree.store, clock, changed(OFF, series="v2"))
    assert tree.state_path.read_bytes() == b"{}"


@pytest.mark.parametrize("series", ["v3", "v2"])
def test_off_cures_a_malformed_state(tree: Tree, clock: FakeClock, series: str) -> None:
    tree.state_path.write_bytes(b"")
    prepare.prepare(tree.store, clock, changed(OFF, series=series))
    assert not tree.state_path.exists() or tree.state_path.read_bytes() == b"{}"


def test_off_leaves_the_output_of_a_job_that_may_still_be_wanted(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    migrated(tree, clock)
    next_state = tree.root / f"scheduler-state.next.{JOB}.json"
    os.utime(next_state, ns=(clock.time, clock.time))
    prepare.prepare(tree.store, clock, OFF)
    assert next_state.exists()
    clock.time += 2 * HOUR
    prepare.prepare(tree.store, clock, OFF)
    assert not next_state.exists()


def test_off_and_on_again_gives_everything_the_switch_plus_ttl(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    clock.time += 10 * HOUR
    prepare.prepare(tree.store, clock, OFF)
    clock.time += 100 * HOUR
    prepare.prepare(tree.store, clock, ON)
    assert all(
        clock.time + TTL // 2 <= time <= clock.time + TTL for time in expiries(tree).values()
    )


# --- on --------------------------------------------------------------------------------------------


def test_on_covers_everything_and_says_so(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    said = prepare.prepare(tree.store, clock, ON)
    assert said["entries"] == said["artifacts"] == said["added"] == len(kinds)
    found = {key: entry["EntryType"] for key, entry in tree.state().items()}
    assert found == {**kinds, canary.key("t1"): 0}
    start = tree.start()
    assert start == {
        "template": "t1",
        "series": "v3",
        "gc": "Enabled",
        "ttl": "24h",
        "time": state.format_time(clock.time),
        "canary": canary.artifact("t1").digest,
        "uncovered": 0,
        "problem": None,
        "migration": None,
    }


def test_the_jobs_state_is_installed_byte_for_byte(tree: Tree, clock: FakeClock) -> None:
    tree.populate()
    migrated(tree, clock)
    next_state = tree.root / f"scheduler-state.next.{JOB}.json"
    (tree.root / "scheduler-state.next.other.json").write_bytes(b"{}")
    finished = next_state.read_bytes()
    os.utime(next_state, ns=(clock.time, clock.time))
    clock.time += 90 * SECOND
    said = prepare.prepare(tree.store, clock, MIGRATED)
    assert tree.state_path.read_bytes() == finished
    assert said["added"] == 0
    assert not list(tree.root.glob("scheduler-state.next.*"))
    prepare.prepare(tree.store, clock, MIGRATED)
    assert tree.state_path.read_bytes() == finished


def test_what_came_after_the_job_is_added_and_the_rest_keeps_its_time(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    migrated(tree, clock)
    before = state.parse((tree.root / f"scheduler-state.next.{JOB}.json").read_bytes()).entries
    new = {tree.layer("a/new", b"shared layer"), tree.layer("a/new", b"a new layer")}
    said = prepare.prepare(tree.store, clock, MIGRATED)
    after = expiries(tree)
    assert said["added"] == 2
    assert after.keys() - before.keys() == new
    shared = next(key for key in new if key.split("@")[1] in {k.split("@")[1] for k in before})
    assert after[shared] == after["a/b@" + shared.split("@")[1]]
    assert all(after[key] == entry.expiry for key, entry in before.items() if key in after)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"x":{"ExpiryData":3}}'])
def test_a_torn_job_state_is_not_installed(tree: Tree, clock: FakeClock, content: bytes) -> None:
    kinds = tree.populate()
    (tree.root / f"scheduler-state.next.{JOB}.json").write_bytes(content)
    prepare.prepare(tree.store, clock, MIGRATED)
    assert expiries(tree).keys() == kinds.keys()


def test_a_healthy_state_with_nothing_new_is_not_touched_and_no_link_is_opened(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    # Written by the registry itself, in its own order and spacing.
    content = json.dumps(dict(reversed(tree.state().items())), indent=1).encode()
    tree.state_path.write_bytes(content)
    before = tree.state_path.stat()
    store = CountingStore(tree.root)
    prepare.prepare(store, clock, ON)
    assert tree.state_path.read_bytes() == content
    assert tree.state_path.stat().st_ino == before.st_ino
    assert store.opened == []
    assert len(store.created) == 1
    assert store.created[0].startswith("pullthrough/start.json")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'{"k":null}'])
def test_a_malformed_state_is_set_aside_and_everything_is_covered(
    tree: Tree, clock: FakeClock, content: bytes
) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, ON)
    tree.state_path.write_bytes(content)
    said = prepare.prepare(tree.store, clock, ON)
    assert expiries(tree).keys() == kinds.keys()
    assert said["problem"] is None
    assert tree.files()["pullthrough/scheduler-state.malformed.json"] == content


def test_a_directory_in_the_states_place_is_set_aside_too(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    tree.state_path.mkdir()
    prepare.prepare(tree.store, clock, ON)
    assert expiries(tree).keys() == kinds.keys()


def test_an_entry_that_can_never_work_is_dropped(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, ON)
    entries = tree.state()
    entries["odd"] = {"Key": "other", "ExpiryData": "2030-01-01T00:00:00Z", "EntryType": 0}
    tree.state_path.write_bytes(json.dumps(entries).encode())
    prepare.prepare(tree.store, clock, ON)
    assert expiries(tree).keys() == kinds.keys()


def test_links_that_are_empty_dangling_bad_or_aliases_are_removed_before_the_start(
    tree: Tree, clock: FakeClock
) -> None:
    kinds = tree.populate()
    zeros = "sha256:" + "0" * 64
    tree.link("x/emptied", "_layers", zeros).unlink()
    tree.link("x/dangling", "_layers", zeros)
    tree.link("x/bad", "_layers", tree.data(b"zero bytes"), "")
    leftover = tree.link("x/leftover", "_layers", zeros)
    leftover.rename(leftover.with_name("link.0190.tmp"))
    blob = tree.data(b"asked for by sha512")
    tree.link("x/alias", "_layers", "sha512:" + "a" * 128, blob)
    said = prepare.prepare(tree.store, clock, ON)
    assert said["problem"] is None
    assert expiries(tree).keys() == {*kinds, f"x/alias@{blob}"}
    for name in ["emptied", "dangling", "bad", "leftover"]:
        assert list((tree.repositories / "x" / name / "_layers/sha256").iterdir()) == []
    assert list((tree.repositories / "x/alias/_layers/sha512").iterdir()) == []
    assert (tree.repositories / "x/alias/_layers/sha256" / blob[7:] / "link").read_text() == blob
    report = audit.audit(tree.store, clock, ttl=TTL)
    assert {row["class"] for row in report["leaks"]} == {"orphan", "emptied"}


def test_a_name_that_no_entry_can_fire_for_is_reported(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    tree.layer("Bad/Name", b"cached under a bad name")
    prepare.prepare(tree.store, clock, ON)
    assert expiries(tree).keys() == kinds.keys()
    assert tree.start()["uncovered"] == 1


def test_repeated_no_expiry_ever_moves_later(tree: Tree, clock: FakeClock) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    last = expiries(tree)
    for step in range(24):
        clock.time += 5 * SECOND
        options = [ON, changed(ON, template=f"t{step}")][step % 2]
        prepare.prepare(tree.store, clock, options)
        now = {key: time for key, time in expiries(tree).items() if not canary.is_canary(key)}
        assert all(time <= last[key] for key, time in now.items() if key in last)
        assert now.keys() == last.keys()
        last = now


def test_a_lowered_ttl_shortens_and_a_raised_one_looks_at_link_times(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    for path in tree.repositories.rglob("link"):
        os.utime(path, ns=(clock.time - HOUR, clock.time - HOUR))
    prepare.prepare(tree.store, clock, ON)
    prepare.prepare(tree.store, clock, changed(ON, ttl=2 * HOUR))
    assert all(clock.time + HOUR <= t <= clock.time + 2 * HOUR for t in expiries(tree).values())
    prepare.prepare(tree.store, clock, changed(ON, ttl=100 * HOUR))
    raised = expiries(tree)
    assert all(clock.time + 99 * HOUR <= t <= clock.time + 100 * HOUR for t in raised.values())
    prepare.prepare(tree.store, clock, changed(ON, ttl=100 * HOUR))
    assert expiries(tree) == raised


def test_a_cache_that_was_stopped_longer_than_its_ttl_does_not_expire_at_one_instant(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    clock.time += 2 * TTL
    prepare.prepare(tree.store, clock, ON)
    times = expiries(tree)
    assert all(clock.time < time <= clock.time + TTL for time in times.values())


@pytest.mark.parametrize(("behind", "waited"), [(10 * SECOND, 0), (HOUR, 60), (330 * SECOND, 30)])
def test_a_clock_behind_the_state_file_is_waited_for_and_never_believed(
    tree: Tree, clock: FakeClock, behind: int, waited: int
) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    before = tree.state_path.read_bytes()
    os.utime(tree.state_path, ns=(clock.time, clock.time))
    written_at = clock.time
    clock.time -= behind
    prepare.prepare(tree.store, clock, ON)
    assert tree.state_path.read_bytes() == before
    assert clock.time == written_at - behind + waited * SECOND


# --- the canary ------------------------------------------------------------------------------------


def test_a_canary_is_planted_only_on_the_start_that_changes_the_template(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    digest = canary.artifact("t1").digest
    link = tree.repositories / canary.REPOSITORY / "_layers/sha256" / digest[7:] / "link"
    data = tree.blobs / "sha256" / digest[7:9] / digest[7:] / "data"
    assert (link.read_text(), data.read_bytes()) == (digest, canary.content("t1"))
    (expiry,) = (e.expiry for k, e in _entries(tree).items() if canary.is_canary(k))
    assert clock.time < expiry <= clock.time + 10 * SECOND
    # The scheduler ate it.
    link.unlink()
    data.unlink()
    data.parent.rmdir()
    tree.state_path.write_bytes(
        state.format({k: e for k, e in _entries(tree).items() if not canary.is_canary(k)})
    )
    prepare.prepare(tree.store, clock, ON)
    assert not data.exists()
    assert not any(canary.is_canary(key) for key in _entries(tree))
    assert tree.start()["canary"] == digest
    prepare.prepare(tree.store, clock, changed(ON, template="t2"))
    assert tree.start()["canary"] == canary.artifact("t2").digest
    assert canary.key("t2") in _entries(tree)


def test_a_canary_that_nobody_ate_is_taken_away_by_the_next(tree: Tree, clock: FakeClock) -> None:
    prepare.prepare(tree.store, clock, ON)
    prepare.prepare(tree.store, clock, changed(ON, template="t2"))
    assert list(_entries(tree)) == [canary.key("t2")]
    old = canary.artifact("t1").digest
    assert not (tree.blobs / "sha256" / old[7:9] / old[7:]).exists()


def test_the_canary_counts_nowhere(tree: Tree, clock: FakeClock) -> None:
    said = prepare.prepare(tree.store, clock, ON)
    assert (said["artifacts"], said["entries"]) == (0, 0)
    report = audit.audit(tree.store, clock, ttl=TTL)
    assert (report["artifacts"], report["blobs"], report["leaks"]) == (0, 0, [])


def _entries(tree: Tree) -> dict[str, state.Entry]:
    return state.parse(tree.state_path.read_bytes()).entries


# --- what fails ------------------------------------------------------------------------------------


def test_a_full_disk_with_collection_on_starts_and_says_so(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, ON)
    before = tree.state_path.read_bytes()
    tree.layer("a/new", b"a new layer")
    said = prepare.prepare(FullStore(tree.root), clock, ON)
    assert tree.state_path.read_bytes() == before
    assert said["uncovered"] == 1
    start = tree.start()
    assert start["uncovered"] == 1
    assert "No space left" in str(start["problem"])
    assert expiries(tree).keys() == kinds.keys()


def test_a_full_disk_and_a_malformed_state_still_start(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, ON)
    tree.state_path.write_bytes(b"")
    prepare.prepare(FullStore(tree.root), clock, ON)
    assert not tree.state_path.exists()
    assert tree.start()["uncovered"] == len(kinds)


def test_a_full_disk_first_loses_what_nothing_can_reach(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, ON)
    new = tree.layer("a/new", b"a new layer")
    upload = tree.repositories / "a/new/_uploads/0190"
    upload.mkdir(parents=True)
    (upload / "data").write_bytes(b"half a layer")
    orphan = tree.data(b"payload of an expired manifest")

    class Relieved(FullStore):
        @property
        def room(self) -> int:  # type: ignore[override]
            orphan_is_there = (tree.blobs / "sha256" / orphan[7:9] / orphan[7:]).exists()
            return 0 if orphan_is_there else 1 << 20

    said = prepare.prepare(Relieved(tree.root), clock, ON)
    assert (said["problem"], said["uncovered"]) == (None, 0)
    assert expiries(tree).keys() == {*kinds, new}
    assert not upload.exists()
    assert {row["class"] for row in audit.audit(tree.store, clock, ttl=TTL)["leaks"]} <= {"emptied"}


def test_with_something_unreadable_no_data_is_sacrificed(tree: Tree, clock: FakeClock) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, ON)
    orphan = tree.data(b"seems to be an orphan")

    class Broken(FullStore, UnreadableStore):
        broken = "only/layer/_layers"

    prepare.prepare(Broken(tree.root), clock, changed(ON, template="t2"))
    assert (tree.blobs / "sha256" / orphan[7:9] / orphan[7:] / "data").exists()


@pytest.mark.parametrize("broken", ["only/layer/_layers/sha256/", "only/layer/_layers"])
def test_an_unreadable_link_with_collection_on_starts_and_says_so(
    tree: Tree, clock: FakeClock, broken: str
) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, changed(ON, template="t0"))
    key = next(key for key in kinds if key.startswith("only/layer@"))
    if broken.endswith("/"):
        entries = {k: e for k, e in _entries(tree).items() if k != key}
        tree.state_path.write_bytes(state.format(entries))
    tree.layer("a/new", b"a new layer")
    store = UnreadableStore(tree.root)
    store.broken = broken
    prepare.prepare(store, clock, ON)
    start = tree.start()
    assert "Input/output error" in str(start["problem"])
    covered = set(expiries(tree))
    if broken.endswith("/"):
        assert start["uncovered"] == 1
        assert key not in covered
    else:
        # The listing failed: what was not seen is not gone, its entry stays.
        assert key in covered
    assert any(k.startswith("a/new@") for k in covered)


def test_on_the_first_start_after_a_migration_a_failure_ends_it(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    prepare.prepare(tree.store, clock, OFF)
    store = UnreadableStore(tree.root)
    store.broken = "only/layer/_layers"
    with pytest.raises(StorageUnreadable):
        prepare.prepare(store, clock, MIGRATED)
    with pytest.raises(StorageFull):
        prepare.prepare(FullStore(tree.root), clock, MIGRATED)
    assert tree.start()["gc"] == "Disabled"
    prepare.prepare(tree.store, clock, MIGRATED)
    prepare.prepare(store, clock, MIGRATED)
    assert tree.start()["problem"]


@pytest.mark.parametrize("torn", [b"", b'{"templ', None], ids=["empty", "cut", "gone"])
def test_a_lost_start_record_does_not_hold_a_verified_member_down(
    tree: Tree, clock: FakeClock, torn: bytes | None
) -> None:
    tree.populate()
    migrated(tree, clock)
    prepare.prepare(tree.store, clock, MIGRATED)
    start = tree.root / "pullthrough/start.json"
    if torn is None:
        start.unlink()
    else:
        start.write_bytes(torn)
    tree.layer("a/new", b"a new layer")
    assert prepare.prepare(FullStore(tree.root), clock, MIGRATED)["uncovered"] == 1


def test_without_a_start_record_the_jobs_waiting_state_says_that_it_is_the_first_start(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    migrated(tree, clock)
    tree.layer("a/new", b"a new layer")
    with pytest.raises(StorageFull):
        prepare.prepare(FullStore(tree.root), clock, MIGRATED)


def test_the_jobs_state_is_installed_once(tree: Tree, clock: FakeClock) -> None:
    """A second pod of the same Job may finish after the member was rolled with it."""
    tree.populate()
    migrated(tree, clock)
    late = (tree.root / f"scheduler-state.next.{JOB}.json").read_bytes()
    prepare.prepare(tree.store, clock, MIGRATED)
    tree.state_path.write_bytes(
        state.format({**_entries(tree), tree.layer("a/b", b"new"): state.Entry(clock.time + 5, 0)})  # type: ignore[arg-type]
    )
    before = tree.state_path.read_bytes()
    (tree.root / f"scheduler-state.next.{JOB}.json").write_bytes(late)
    prepare.prepare(tree.store, clock, MIGRATED)
    assert tree.state_path.read_bytes() == before
    assert not list(tree.root.glob("scheduler-state.next.*"))


def test_on_a_full_disk_the_start_record_is_written_over_the_old_one_in_its_place(
    tree: Tree, clock: FakeClock
) -> None:
    kinds = tree.populate()
    prepare.prepare(tree.store, clock, ON)
    path = tree.root / "pullthrough/start.json"
    assert path.stat().st_size == 4096
    inode = path.stat().st_ino
    tree.state_path.unlink()
    prepare.prepare(FullStore(tree.root), clock, changed(ON, template="t" * 900))
    assert (path.stat().st_ino, path.stat().st_size) == (inode, 4096)
    assert tree.start()["uncovered"] == len(kinds)


def test_on_a_full_disk_a_start_record_that_would_not_fit_is_left_as_it_is(
    tree: Tree, clock: FakeClock
) -> None:
    prepare.prepare(tree.store, clock, ON)
    path = tree.root / "pullthrough/start.json"
    short = json.dumps(json.loads(path.read_bytes())).encode()
    path.write_bytes(short)
    prepare.prepare(FullStore(tree.root), clock, changed(ON, template="t" * 900))
    assert path.read_bytes() == short
    path.unlink()
    prepare.prepare(FullStore(tree.root), clock, ON)
    assert not path.exists()


# --- the Job ---------------------------------------------------------------------------------------


def test_the_job_deletes_nothing_and_does_not_touch_the_state(tree: Tree, clock: FakeClock) -> None:
    kinds = tree.populate()
    tree.link("x/dangling", "_layers", "sha256:" + "0" * 64)
    tree.link("x/bad", "_layers", tree.data(b"zero"), "")
    tree.state_path.write_bytes(b"{}")
    before = tree.files()
    options = migrate.Options(ttl=TTL, host="docker.io", job=JOB)
    said = migrate.migrate(tree.store, clock, options)
    after = tree.files()
    finished = after.pop(f"scheduler-state.next.{JOB}.json")
    assert after == before
    entries = state.parse(finished).entries
    assert entries.keys() == {*kinds, canary.key(JOB)}
    assert said["entries"] == said["artifacts"] == said["added"] == len(kinds)
    assert said["bytes"] == sum(
        path.stat().st_size for path in tree.blobs.rglob("data") if path.is_file()
    )
    assert said["leaks"] == {"uncovered": len(kinds), "badLink": 1, "dangling": 1, "orphan": 1}
    assert said["collectedBy"] == state.format_time(clock.time + TTL)
    assert said["stateBytes"] == len(finished)
    assert all(e.expiry <= clock.time + TTL for e in entries.values())


def job_file(tree: Tree, name: str, time: int) -> Path:
    path = tree.root / f"scheduler-state.next.{name}.json"
    path.write_bytes(b"{}")
    os.utime(path, ns=(time, time))
    return path


def test_the_job_removes_what_earlier_ones_left_too_long_ago(tree: Tree, clock: FakeClock) -> None:
    tree.populate()
    old = job_file(tree, "old", 0)
    # ctime is the system's: the clock of this test is set by it.
    clock.time = old.stat().st_ctime_ns + HOUR
    migrated(tree, clock)
    assert old.exists(), "its roll may just have been decided"
    clock.time += HOUR // 2
    own = tree.root / f"scheduler-state.next.{JOB}.json"
    migrated(tree, clock, job="the-next")
    assert not old.exists()
    assert not own.exists()


def test_with_a_short_ttl_results_go_stale_sooner(tree: Tree, clock: FakeClock) -> None:
    old = job_file(tree, "old", 0)
    clock.time = old.stat().st_ctime_ns + 12 * 60 * SECOND
    migrated(tree, clock, ttl=60 * SECOND)
    assert not old.exists()


def test_a_job_that_wakes_up_late_leaves_what_its_successor_finished(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    migrated(tree, clock, job="successor")
    finished = tree.root / "scheduler-state.next.successor.json"
    clock.time = finished.stat().st_ctime_ns + 5 * 60 * SECOND
    migrated(tree, clock, job="zombie")
    assert finished.exists()


def test_the_job_keeps_the_entries_of_a_registry_that_schedules_anyway(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    key = tree.layer("a/known", b"scheduled by 2.8 with deletion off")
    known = state.Entry(clock.time + HOUR, 0)  # type: ignore[arg-type]
    tree.state_path.write_bytes(state.format({key: known}))
    migrated(tree, clock)
    finished = (tree.root / f"scheduler-state.next.{JOB}.json").read_bytes()
    assert state.parse(finished).entries[key].expiry == clock.time + HOUR


def test_the_job_refuses_a_memory_limit_that_the_registry_would_die_of(
    tree: Tree, clock: FakeClock
) -> None:
    tree.populate()
    before = tree.files()
    with pytest.raises(MemoryLimitTooLow, match=r"raise .* to at least 26Mi"):
        migrated(tree, clock, memory_limit=16 * 2**20)
    assert tree.files() == before
    migrated(tree, clock, memory_limit=26 * 2**20)


def test_the_job_refuses_a_disk_without_space_for_the_state(tree: Tree, clock: FakeClock) -> None:
    tree.populate()

    class Tight(FullStore):
        room = 1 << 20

        def free(self) -> int:
            return 100

    with pytest.raises(StorageFull, match="enlarge"):
        migrate.migrate(
            Tight(tree.root), clock, migrate.Options(ttl=TTL, host="docker.io", job=JOB)
        )


def test_command_lines_end_with_their_codes_and_messages(tree: Tree, tmp_path: Path) -> None:
    tree.populate()
    message = tmp_path / "message"
    where = ["--storage", str(tree.root), "--series", "v3", "--ttl", "24h", "--spread", "1h"]
    where += ["--termination-message", str(message), "--upstream-host"]
    on = ["--gc", "Enabled", "--template", "t1", "--migration", JOB]
    assert cli.main(["migrate", *where, "docker.io", "--id", JOB]) == 0
    assert {"version": 1, "leaks": {"uncovered": 14}}.items() <= json.loads(
        message.read_text()
    ).items()
    assert cli.main(["prepare", *where, "docker.io", *on]) == 0
    assert json.loads(message.read_text())["added"] == 0
    assert cli.main(["prepare", *where, "quay.io", *on]) == 3
    failed = json.loads(message.read_text())
    assert failed.keys() == {"version", "reason", "message"}
    assert failed["reason"] == "StorageBelongsToOtherUpstream"
    assert cli.main(["migrate", *where, "quay.io", "--id", JOB]) == 3
    assert cli.main(["migrate", *where, "docker.io", "--id", JOB, "--memory-limit", "1000"]) == 1
    assert json.loads(message.read_text())["reason"] == "MemoryLimitTooLow"
