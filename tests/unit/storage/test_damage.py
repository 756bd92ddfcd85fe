"""Storages that somebody or something damaged. What decides: what lies where, and the program.

Each program ends with a correct result or with an error that names the path and the remedy, never
with a traceback; nothing outside the storage changes, nothing that can be served is removed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import audit, canary, prepare, reseed, state, statefile
from pullthrough.storage.errors import StateMalformed, StorageError
from pullthrough.storage.store import FileStore
from tests import interrupted
from tests.storage_programs import CASES, NOW, ON, TTL, arranged, covered, keeper, plain, reachable
from tests.storage_trees import SECOND, CountingStore, FakeClock, Tree

PROGRAMS: dict[str, Callable[[Tree], object]] = {
    "audit": lambda tree: audit.audit(tree.store, FakeClock(NOW), ttl=TTL),
    "prepare": lambda tree: CASES["prepare, new template"].run(tree.store, FakeClock(NOW)),
    "reseed": lambda tree: CASES["reseed"].run(tree.store, FakeClock(NOW)),
    "migrate": lambda tree: CASES["migrate"].run(tree.store, FakeClock(NOW)),
    "keep": lambda tree: CASES["keep"].run(tree.store, FakeClock(NOW)),
}


@pytest.fixture
def memory() -> Iterator[Path]:
    with interrupted.in_memory() as directory:
        yield directory


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "storage")


def put_directory(victim: Path, outside: Path) -> None:
    _move(victim, outside)
    victim.mkdir()
    (victim / "something").write_bytes(b"x")


def put_file(victim: Path, outside: Path) -> None:
    _move(victim, outside)
    victim.write_bytes(b"not what belongs here")


def put_link(victim: Path, outside: Path) -> None:
    """What was there lies outside now, and a registry would follow the link to it."""
    _move(victim, outside)
    victim.symlink_to(outside / victim.name)


def put_loop(victim: Path, outside: Path) -> None:
    _move(victim, outside)
    victim.symlink_to(victim.name)


def put_pipe(victim: Path, outside: Path) -> None:
    _move(victim, outside)
    os.mkfifo(victim)


def _move(victim: Path, outside: Path) -> None:
    outside.mkdir()
    shutil.move(victim, outside / victim.name)


DAMAGES = [put_directory, put_file, put_link, put_loop, put_pipe]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_something_else_where_a_file_or_directory_belongs(
    memory: Path, damage: Callable[[Path, Path], None], program: str
) -> None:
    template = Tree(memory / "template")
    covered(template)
    for number, path in enumerate(sorted(interrupted.everything(template.root))):
        if path == "." or ((memory / "template" / path).is_dir() and damage is put_directory):
            continue
        damaged = Tree(interrupted.copy(template.root, memory / f"tree {number}"))
        outside = memory / f"outside {number}"
        damage(damaged.root / path, outside)
        before, served = interrupted.everything(outside), reachable(damaged)
        where = f"{damage.__name__} at {path}"
        said = ""
        try:
            PROGRAMS[program](damaged)
        except StorageError as error:
            said = error.message
            assert ": " in said or "--adopt-unmarked" in said, where
        assert interrupted.everything(outside) == before, where
        assert served.items() <= reachable(damaged).items(), f"{where}: {said}"
        if said and "symbolic link" in said:
            assert path in said, where


def test_a_symbolic_link_in_the_tree_is_reported_by_its_path(tree: Tree, tmp_path: Path) -> None:
    covered(tree)
    victim = tree.repositories / "library"
    shutil.move(victim, tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    for program in ["audit", "reseed", "migrate"]:
        try:
            said = json.dumps(PROGRAMS[program](tree))
        except StorageError as error:
            said = error.message
        assert "repositories/library" in said, program
    prepare.prepare(tree.store, FakeClock(NOW), ON)
    assert "repositories/library: " in str(tree.start()["problem"])
    # What was not seen keeps its entries.
    assert sum("library/alpine" in key for key in tree.state()) == 2


def test_names_that_are_not_utf_8_or_would_talk_to_a_terminal(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    plain(tree)
    served = reachable(tree)
    root = os.fsencode(tree.repositories)
    for name in [b"\xff\xfe", b"\x1b[2J", b"new\nline", b"a/_layers/sha256/\xff"]:
        os.makedirs(root + b"/" + name + b"/_layers/sha256/" + b"0" * 64)
    os.makedirs(os.fsencode(tree.blobs) + b"/sha256/\xff/\xff")
    layer = tree.data(b"below a bad name")
    bad = root + b"/\xff\xfe/_layers/sha256/" + layer[7:].encode()
    os.makedirs(bad)
    Path(os.fsdecode(bad + b"/link")).write_text(layer)
    for run in PROGRAMS.values():
        run(tree)
    assert served.items() <= reachable(tree).items()
    for words in [[], ["--json"]]:
        assert cli.main(["audit", "--storage", str(tree.root), *words]) in {0, 1}
    said = capsys.readouterr().out
    said.encode("utf-8")
    assert "\x1b" not in said
    with pytest.raises(SystemExit):
        cli.main(["audit", "--storage", str(tree.root), "--x\x1b"])


def test_ten_thousand_nested_directories(memory: Path) -> None:
    tree = Tree(memory / "storage")
    covered(tree)
    served = reachable(tree)
    for start, depth in [(tree.repositories / "a", 10_000), (tree.blobs / "sha256", 1_000)]:
        descriptor = os.open(start, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=descriptor)
            below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(descriptor)
    try:
        for program in ["audit", "prepare", "reseed", "migrate"]:
            PROGRAMS[program](tree)
        keeper(tree.store, FakeClock(NOW)).sweep()
        assert served.items() <= {path: (tree.root / path).read_bytes() for path in served}.items()
    finally:
        # shutil.rmtree and pytest's own cleaning recurse.
        assert os.spawnlp(os.P_WAIT, "rm", "rm", "-rf", str(tree.root)) == 0


def test_a_state_of_a_gibibyte_is_not_read_and_holds_no_registry_down(tree: Tree) -> None:
    covered(tree)
    os.truncate(tree.state_path, 1 << 30)
    read: list[str] = []

    class Watching(CountingStore):
        def read(self, path: str, limit: int = 1 << 62) -> bytes | None:
            read.append(path)
            return super().read(path, limit)

    store = Watching(tree.root)
    with pytest.raises(StateMalformed, match=r"1073741824 bytes.*reseed"):
        statefile.load(store)
    assert "too-large" in json.dumps(audit.audit(store, FakeClock(NOW), ttl=TTL))
    assert "scheduler-state.json" not in read
    shutil.copytree(tree.root, tree.root.with_name("copy"), copy_function=_sparse)
    prepare.prepare(store, FakeClock(NOW), ON)
    assert sum(not canary.is_canary(key) for key in tree.state()) == 3
    other = Tree(tree.root.with_name("copy"))
    reseed.reseed(other.store, FakeClock(NOW), ttl=TTL, spread=None, dry_run=False)
    assert len(other.state()) == 3


def _sparse(source: str, target: str) -> None:
    if os.stat(source).st_size > 1 << 20:
        Path(target).touch()
        os.truncate(target, os.stat(source).st_size)
    else:
        shutil.copy2(source, target)


STATES = {
    "far ahead": "2500-01-01T00:00:00Z",
    "year 9999": "9999-12-31T23:59:59.999999999Z",
    "beyond 9999": "9999-12-31T23:59:59-23:59",
    "year 0": "0000-01-01T00:00:00Z",
    "year 1": "0001-01-01T00:00:00Z",
}


def _with_times(tree: Tree, time: str) -> None:
    entries = {key: {**entry, "ExpiryData": time} for key, entry in tree.state().items()}
    tree.state_path.write_text(json.dumps(entries))


def _is_in_bounds(tree: Tree, now: int, count: int) -> None:
    found = state.parse(tree.state_path.read_bytes()).entries
    own = {key: entry.expiry for key, entry in found.items() if not canary.is_canary(key)}
    assert len(own) == count
    assert all(now < expiry <= now + TTL for expiry in own.values())


@pytest.mark.parametrize("time", STATES.values(), ids=STATES)
@pytest.mark.parametrize("program", ["prepare", "reseed"])
def test_times_from_anywhere_end_within_the_ttl(tree: Tree, program: str, time: str) -> None:
    covered(tree)
    _with_times(tree, time)
    audit.audit(tree.store, FakeClock(NOW), ttl=TTL)
    PROGRAMS[program](tree)
    _is_in_bounds(tree, NOW, 3)


@pytest.mark.parametrize("time", STATES.values(), ids=STATES)
def test_times_from_anywhere_and_a_listing_that_fails(
    tree: Tree, time: str, tmp_path: Path
) -> None:
    """What was not seen keeps its entries, whatever they say."""
    covered(tree)
    _with_times(tree, time)
    tree.layer("a/new", b"so that the state is written")
    victim = tree.repositories / "library"
    shutil.move(victim, tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    prepare.prepare(tree.store, FakeClock(NOW), ON)
    assert sum("library/alpine" in key for key in tree.state()) == 2


@pytest.mark.parametrize(
    "raw", [b"\xef\xbb\xbf{}", b'{"a":1,"a":{}}', b"\xff\xfe{\0}\0", b"\0" * 99]
)
@pytest.mark.parametrize("program", ["prepare", "reseed"])
def test_a_byte_order_mark_or_duplicate_keys(tree: Tree, program: str, raw: bytes) -> None:
    covered(tree)
    tree.state_path.write_bytes(raw)
    PROGRAMS[program](tree)
    _is_in_bounds(tree, NOW, 3)
    assert (tree.root / statefile.ASIDE).read_bytes() == raw


@pytest.mark.parametrize("jump", [-100 * TTL, -TTL, TTL // 2, 100 * TTL])
@pytest.mark.parametrize("program", ["prepare", "reseed"])
def test_a_clock_that_jumped(tree: Tree, program: str, jump: int) -> None:
    covered(tree)
    # The state file's own time is of the machine's clock, long before this one.
    PROGRAMS[program](tree)
    now = NOW + jump
    options = ON if program == "prepare" else None
    run: Callable[[], object] = (
        (lambda: prepare.prepare(tree.store, FakeClock(now), ON))
        if options
        else (
            lambda: reseed.reseed(tree.store, FakeClock(now), ttl=TTL, spread=None, dry_run=False)
        )
    )
    run()
    _is_in_bounds(tree, now, 3)


def test_a_state_file_from_the_future_is_believed_only_as_far_as_can_be_written(
    tree: Tree,
) -> None:
    covered(tree)
    for year in [2_400, 9_999]:
        seconds = int((year - 1970) * 365.2425 * 86_400)
        try:
            os.utime(tree.state_path, (seconds, seconds))
        except OverflowError:
            continue
        tree.layer("a/new", f"pulled before {year}".encode())
        prepare.prepare(FileStore(tree.root), FakeClock(NOW), ON)
        assert state.parse(tree.state_path.read_bytes()).entries
        assert tree.state_path.stat().st_mtime_ns < NOW + 100 * 365 * 86_400 * SECOND


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"9" * 5000, b'{"format": NaN}', b""])
@pytest.mark.parametrize("name", ["marker.json", "start.json"])
def test_our_own_files_damaged(tree: Tree, name: str, content: bytes) -> None:
    covered(tree)
    (tree.root / "pullthrough" / name).write_bytes(content)
    if name == "marker.json":
        with pytest.raises(StorageError, match="--adopt-unmarked"):
            PROGRAMS["prepare"](tree)
    else:
        PROGRAMS["prepare"](tree)
        _is_in_bounds(tree, NOW, 3)
    PROGRAMS["keep"](tree)
    assert arranged(CASES["reseed"], tree.root.with_name("other"))
