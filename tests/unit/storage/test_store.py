"""The seam: what is not there is an answer, everything else an error; the atomic write."""

import os
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


def test_new_directories_are_synced_into_those_that_hold_them(tmp_path: Path) -> None:
    synced: list[str] = []

    class Noting(FileStore):
        def sync_directory(self, path: str) -> None:
            synced.append(path)
            super().sync_directory(path)

    store = Noting(tmp_path)
    store.make_directories("a/b/c")
    assert synced == ["", "a", "a/b"]
    store.make_directories("a/b/c")
    assert synced == ["", "a", "a/b"], "what is there already costs nothing"
