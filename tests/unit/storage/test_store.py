"""The seam: what is not there is an answer, everything else an error; the atomic write."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pullthrough.storage.errors import StorageFull, StorageNotWritable, StorageUnreadable
from pullthrough.storage.store import FileStore, replace
from tests.storage_trees import FullStore, Killed, KillingStore

OLD, NEW = b"old content", b"new and rather longer content"


def test_a_missing_root_is_an_error_and_never_an_empty_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreadable):
        FileStore(tmp_path / "not mounted")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnreadable, match="not a directory"):
        FileStore(tmp_path / "file")


def test_what_is_not_there_is_none_or_false(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for path in ["x", "file/x"]:
        assert store.names(path) is None
        assert store.directories(path) is None
        assert store.read(path) is None
        assert store.facts(path) is None
        assert store.unlink(path) is False
    assert store.rmdir("x") is True
    assert store.rmdir("file") is False
    assert list(store.read_each("x", ["a", "b"], "link", 10)) == [("a", None), ("b", None)]
    assert list(store.names_each("x", ["a", "b"])) == [("a", None), ("b", None)]
    assert list(store.facts_each("x", ["a", "b"], "data")) == [("a", None), ("b", None)]
    assert list(store.names_each("", ["x", "file"])) == [("x", None), ("file", None)]
    assert list(store.facts_each("", ["x", "file"], "data")) == [("x", None), ("file", None)]


def test_asking_for_each_answers_like_asking_one_by_one(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for name in ["full", "empty", "more"]:
        (tmp_path / "d" / name).mkdir(parents=True)
    for path in ["full/data", "more/data", "more/beside"]:
        (tmp_path / "d" / path).write_text(path)
    names = ["full", "empty", "more", "absent"]
    for name, found in store.names_each("d", names):
        assert found == store.names(f"d/{name}")
    assert [name for name, _ in store.names_each("d", names)] == names
    for name, facts in store.facts_each("d", names, "data"):
        assert facts == store.facts(f"d/{name}/data")
    assert [name for name, _ in store.facts_each("d", names, "data")] == names


def test_no_asking_for_each_follows_a_symbolic_link(tmp_path: Path) -> None:
    """At the end, on the way, and above: each answer names the link."""
    (tmp_path / "outside/a").mkdir(parents=True)
    (tmp_path / "outside/a/data").write_text("secret")
    root = tmp_path / "storage"
    (root / "d/b").mkdir(parents=True)
    (root / "d/a").symlink_to(tmp_path / "outside/a")
    (root / "d/b/data").symlink_to(tmp_path / "outside/a/data")
    (root / "e").symlink_to(tmp_path / "outside")
    store = FileStore(root)

    def linked(answers: Iterable[tuple[str, object]]) -> list[str | None]:
        return [
            answer.symbolic_link if isinstance(answer, StorageUnreadable) else None
            for _, answer in answers
        ]

    assert linked(store.names_each("d", ["a", "b"])) == ["d/a", None]
    assert linked(store.names_each("e", ["a"])) == ["e"]
    assert linked(store.facts_each("d", ["a", "b"], "data")) == ["d/a", "d/b/data"]
    assert linked(store.facts_each("e", ["a"], "data")) == ["e"]


def test_what_cannot_be_read_is_an_error_of_that_name_alone(tmp_path: Path) -> None:
    for name in ["a", "b", "c"]:
        (tmp_path / name).mkdir()
    (tmp_path / "a/link").write_bytes(b"1")
    (tmp_path / "b/link").symlink_to("link")
    (tmp_path / "c/link").mkdir()
    found = dict(FileStore(tmp_path).read_each("", ["a", "b", "c"], "link", 10))
    assert found["a"] == b"1"
    assert isinstance(found["b"], StorageUnreadable)
    assert isinstance(found["c"], StorageUnreadable)
    with pytest.raises(StorageUnreadable):
        FileStore(tmp_path).read("b/link")


@pytest.mark.parametrize("survive", range(6))
def test_a_killed_write_leaves_the_old_or_the_new_content_whole(
    tmp_path: Path, survive: int
) -> None:
    replace(FileStore(tmp_path), "d/state.json", OLD)
    store = KillingStore(tmp_path, survive)
    try:
        replace(store, "d/state.json", NEW)
    except Killed:
        assert (tmp_path / "d/state.json").read_bytes() in {OLD, NEW}
    else:
        assert (tmp_path / "d/state.json").read_bytes() == NEW
    replace(FileStore(tmp_path), "d/state.json", NEW)
    assert (tmp_path / "d/state.json").read_bytes() == NEW


def test_a_write_that_fails_leaves_the_old_content_and_nothing_aside(tmp_path: Path) -> None:
    replace(FileStore(tmp_path), "state.json", OLD)
    with pytest.raises(StorageFull):
        replace(FullStore(tmp_path), "state.json", NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_write_that_reads_back_differently_is_refused(tmp_path: Path) -> None:
    class LyingStore(FileStore):
        def create(self, path: str, data: bytes) -> None:
            super().create(path, data[:-1])

    replace(FileStore(tmp_path), "state.json", OLD)
    with pytest.raises(StorageNotWritable, match="reads back"):
        replace(LyingStore(tmp_path), "state.json", NEW)
    assert (tmp_path / "state.json").read_bytes() == OLD


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        replace(FileStore(tmp_path), "d/state.json", NEW)
    finally:
        os.umask(mask)
    assert (tmp_path / "d/state.json").stat().st_mode & 0o777 == 0o664
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o775


def test_new_directories_are_synced_into_those_that_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    store = FileStore(tmp_path)
    store.make_directories("a/b/c")
    expected = [(tmp_path / way).stat().st_ino for way in (".", "a", "a/b")]
    assert synced == expected
    store.make_directories("a/b/c")
    assert synced == expected, "what is there already costs nothing"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the storage that a link in it leads to; nothing may happen to it."""
    made = tmp_path / "outside"
    (made / "d").mkdir(parents=True)
    (made / "file").write_bytes(OLD)
    (made / "d/link").write_bytes(OLD)
    (made / "empty").mkdir()
    return made


READS: dict[str, Callable[[FileStore], object]] = {
    "names": lambda store: store.names("way"),
    "names below": lambda store: store.names("way/d"),
    "directories": lambda store: store.directories("way"),
    "read": lambda store: store.read("way/file"),
    "read the link itself": lambda store: store.read("way"),
    "facts": lambda store: store.facts("way/file"),
    "facts below": lambda store: store.facts("way/d/link"),
    "facts of the link itself": lambda store: store.facts("way"),
    "read_each": lambda store: _only(store.read_each("way", ["d"], "link", 9)),
    "read_each of a link": lambda store: _only(store.read_each("", ["way"], "file", 9)),
    "read_each below a link": lambda store: _only(store.read_each("", ["way"], "d/link", 9)),
    "read_each below a name": lambda store: _only(store.read_each("", ["x"], "way/file", 9)),
}
WRITES: dict[str, Callable[[FileStore], object]] = {
    "make_directories": lambda store: store.make_directories("way/new"),
    "make_directories at the link": lambda store: store.make_directories("way"),
    "create": lambda store: store.create("way/new", NEW),
    "create at the link": lambda store: store.create("file", NEW),
    "overwrite": lambda store: store.overwrite("way/file", NEW),
    "overwrite the link": lambda store: store.overwrite("file", NEW),
    "rename from": lambda store: store.rename("way/file", "file2"),
    "rename to": lambda store: store.rename("plain", "way/file"),
    "unlink": lambda store: store.unlink("way/file"),
    "unlink below": lambda store: store.unlink("way/d/link"),
    "rmdir": lambda store: store.rmdir("way/empty"),
    "sync_directory": lambda store: store.sync_directory("way"),
    "replace": lambda store: replace(store, "way/file", NEW),
}


def _only(found: Iterator[tuple[str, bytes | StorageUnreadable | None]]) -> bytes | None:
    ((_, content),) = found
    if isinstance(content, StorageUnreadable):
        raise content
    return content


def _crooked(tmp_path: Path, outside: Path) -> FileStore:
    root = tmp_path / "storage"
    (root / "x").mkdir(parents=True)
    (root / "plain").write_bytes(NEW)
    (root / "way").symlink_to(outside)
    (root / "x/way").symlink_to(outside)
    (root / "file").symlink_to(outside / "file")
    return FileStore(root)


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_no_read_follows_a_symbolic_link(
    tmp_path: Path, outside: Path, call: Callable[[FileStore], object]
) -> None:
    with pytest.raises(StorageUnreadable, match=r"way.*: .*symbolic link"):
        call(_crooked(tmp_path, outside))


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_no_write_goes_through_a_symbolic_link(
    tmp_path: Path, outside: Path, call: Callable[[FileStore], object]
) -> None:
    def seen() -> list[tuple[str, bytes]]:
        files = sorted(outside.rglob("*"))
        return [(str(p), p.read_bytes() if p.is_file() else b"") for p in files]

    before = seen()
    store = _crooked(tmp_path, outside)
    with pytest.raises(StorageNotWritable, match=r"symbolic link|File exists"):
        call(store)
    assert seen() == before


def test_a_symbolic_link_counts_as_a_directory_so_that_nobody_takes_it_for_nothing(
    tmp_path: Path, outside: Path
) -> None:
    found = _crooked(tmp_path, outside).directories("")
    assert sorted(found or []) == ["file", "way", "x"]


def test_the_root_itself_may_be_a_symbolic_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "root").symlink_to(outside)
    store = FileStore(tmp_path / "root")
    replace(store, "d/new", NEW)
    assert store.read("d/new") == NEW
    assert store.facts("d/new") is not None


def test_a_pipe_where_a_file_belongs_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a/link")
    store = FileStore(tmp_path)
    assert dict(store.read_each("", ["a"], "link", 9)) == {"a": b""}
    assert store.read("a/link") == b""
    with pytest.raises(StorageNotWritable):
        store.overwrite("a/link", NEW)


def test_a_directory_that_a_killed_run_only_made_gets_its_mode_from_the_next(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine/below").mkdir(mode=0o700, parents=True)
    (tmp_path / "mine").chmod(0o750)
    FileStore(tmp_path).make_directories("mine/below")
    assert (tmp_path / "mine/below").stat().st_mode & 0o777 == 0o775
    # What holds something is somebody's: left as it is.
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o750
