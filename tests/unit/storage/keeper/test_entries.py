"""The TTL state read in pieces says what the whole says: same keys, same verdict on what is malformed."""

import json
from pathlib import Path

import pytest

from pullthrough.storage import canary, layout, state
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.keeper import entries, repair
from pullthrough.storage.keeper.hashes import Hashes
from pullthrough.storage.state import SECOND, Entry
from pullthrough.storage.store import FileStore

NOW = 1_900_000_000 * SECOND
DIGEST = "sha256:" + "0123456789abcdef" * 4
KEYS = [f"library/image{n}@sha256:{n:064x}" for n in range(2500)]
GOOD = '{"a/b@%s":{"Key":"a/b@%s","ExpiryData":"%s","EntryType":%s}}'


def whole(number: int = 2500) -> bytes:
    """As a registry writes it; every third entry is a minute past."""
    return state.format(
        {
            key: Entry(NOW + (HOUR if n % 3 else -HOUR), layout.Kind(n % 2))
            for n, key in enumerate(KEYS[:number])
        }
    )


HOUR = 3600 * SECOND


def listed(tmp_path: Path, content: bytes) -> entries.Listed | str:
    (tmp_path / layout.STATE).write_bytes(content)
    return entries.read(FileStore(tmp_path), due_before=NOW)


class Whole(FileStore):
    """Has no pieces."""

    pieces = None  # type: ignore[assignment]


@pytest.mark.parametrize("piece", [1000, 4097, 1 << 18])
def test_every_entry_is_found_whatever_the_pieces(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PIECE", piece)
    found = listed(tmp_path, whole())
    assert isinstance(found, entries.Listed)
    assert len(found.keys) == 2500
    assert all(key in found.keys for key in KEYS)
    assert KEYS[0].replace("image0", "image1") not in found.keys
    assert found.overdue == 834


def test_a_state_of_the_one_shape_is_never_read_whole(tmp_path: Path) -> None:
    class Piecewise(FileStore):
        def read(self, path: str, limit: int = 1 << 62) -> bytes | None:
            raise AssertionError

    (tmp_path / layout.STATE).write_bytes(whole())
    assert isinstance(entries.read(Piecewise(tmp_path), due_before=NOW), entries.Listed)
    (tmp_path / layout.STATE).write_bytes(whole()[:-40])
    assert entries.read(Piecewise(tmp_path), due_before=NOW) == "not-json"


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"{}\n",
        b" {}",
        b"{",
        b"",
        b"null",
        b"[]",
        b'{"k":null}',
        b"\xef\xbb\xbf{}",
        whole(3),
        whole(3) + b"\n",
        whole(3) + b"x",
        whole(3)[:-1],
        whole(3)[:-1] + b",}",
        whole(40)[: len(whole(40)) // 2],
        json.dumps(json.loads(whole(3)), indent=1).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-30T00:00:00Z", 0)).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28T24:00:00Z", 0)).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28T23:00:00+02:00", 0)).encode(),
        (GOOD % (DIGEST, DIGEST, "2031-02-28T23:00:00.123456789012Z", 1)).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28T23:00:00Z", 7)).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28T23:00:00Z", '"0"')).encode(),
        (GOOD % (DIGEST, "sha256:0", "2029-02-28T23:00:00Z", 0)).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28 23:00:00Z", 0)).encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28T23:00:00Z", 0)).replace("a/b", "Bad/Name").encode(),
        (GOOD % (DIGEST, DIGEST, "2029-02-28T23:00:00Z", 0)).replace("a/b", "x" * 900).encode(),
        (GOOD % (DIGEST, DIGEST, "0000-02-28T23:00:00Z", 0)).encode(),
    ],
)
@pytest.mark.parametrize("store", [FileStore, Whole])
def test_it_agrees_with_the_whole_parser(
    tmp_path: Path, content: bytes, store: type[FileStore]
) -> None:
    (tmp_path / layout.STATE).write_bytes(content)
    found = entries.read(store(tmp_path), due_before=NOW)
    try:
        expected = state.parse(content).entries
    except StateMalformed:
        assert isinstance(found, str)
        return
    assert isinstance(found, entries.Listed)
    assert len(found.keys) == len(expected)
    assert all(key in found.keys for key in expected)
    assert found.overdue == sum(entry.expiry < NOW for entry in expected.values())


def test_canaries_are_never_overdue(tmp_path: Path) -> None:
    found = listed(tmp_path, state.format({canary.key("seed"): canary.entry(NOW - HOUR)}))
    assert isinstance(found, entries.Listed)
    assert found.overdue == 0


def test_no_file_and_a_file_that_changes_prove_nothing(tmp_path: Path) -> None:
    assert entries.read(FileStore(tmp_path), due_before=NOW) == "missing"

    class Growing(FileStore):
        def facts(self, path: str):  # type: ignore[no-untyped-def]
            found = super().facts(path)
            with (tmp_path / layout.STATE).open("ab") as file:
                file.write(b"\n")
            return found

    (tmp_path / layout.STATE).write_bytes(whole(3))
    assert entries.read(Growing(tmp_path), due_before=NOW) == "changing"


def test_hashes_tell_what_was_added() -> None:
    made = Hashes()
    for number in range(10_000):
        made.add(f"digest {number}")
    assert all(f"digest {number}" in made for number in range(10_000))
    assert not any(f"digest {number}" in made for number in range(10_000, 20_000))
    made.add("later")
    assert "later" in made


def test_a_large_state_of_another_shape_proves_nothing_and_is_not_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "LARGEST_WHOLE", 5000)
    odd = json.dumps(json.loads(whole(40)), indent=1).encode()
    assert listed(tmp_path, odd) == "too-large"
    store = FileStore(tmp_path)
    assert repair.observe(store, None, port_is_open=False, now=NOW) is None
    (tmp_path / layout.STATE).write_bytes(odd[:-6])
    assert listed(tmp_path, odd[:-6]) == "not-json"
    assert repair.observe(store, None, port_is_open=False, now=NOW) is not None
