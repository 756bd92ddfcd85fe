"""Every way to leak, on real registries: it is there, audit names it, the programs end it, pulls work.

Contributes to what is under test: `audit`, `reseed`, `sweep`, and the keeper's passes. For each row of leaks.py and each
version that it applies to:

1. provoke it; copy the storage;
2. the control: a registry with collection on serves the storage, its scheduler does all that it has to (the witness),
   and what leaked is still there;
3. beside that registry the keeper's passes, with its clock days ahead, remove what they may remove, and pulls work;
4. on the copy, with no registry: audit names exactly what leaked, the row's programs end it (reseed by letting the
   registry collect), audit finds nothing more, and pulls work.

What was seen is compared with leaks.json. `LEAKS_RECORD=1` writes that file instead; then `make generate`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pullthrough import durations
from pullthrough.storage import audit, reseed, state, sweep
from pullthrough.storage.keeper import settings
from pullthrough.storage.keeper.program import Board, Keeper
from pullthrough.storage.program import Sayer
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import FileStore, SystemClock
from pullthrough.storage.survey import Leak
from tests import images
from tests.registry import leaks, leaks_document, provoking
from tests.registry.conftest import program
from tests.registry.leaks import Row
from tests.registry.provoking import GONE, Left, Scene
from tests.registry.servers import Registry, Series, eventually, free_port

pytestmark = pytest.mark.registry

HOUR = 3600 * SECOND
DAYS = 48 * HOUR
PASS = HOUR + 60 * SECOND
"""Between two passes of the keeper, on its clock: each looks for uploads and temporary files too."""
PASSES = 5
"""Bad links, what hung on them, their data, each seen twice."""
TTL_OF_2_8 = "168h"
"""Built in."""
SOON = 1 * SECOND
LEFT_BY_THE_KEEPER = frozenset({Leak.EMPTIED, Leak.BEYOND, GONE})
"""Directories are never removed beside a registry, and the state is the registry's."""


class Quiet(SystemClock):
    """For a registry that is known to be stopped: nothing is waited for."""

    def sleep(self, seconds: float) -> None:
        pass


class Ahead(Quiet):
    """Days later, and so much later with each pass."""

    def __init__(self) -> None:
        self.by = DAYS

    def now(self) -> int:
        return super().now() + self.by


@pytest.fixture(scope="module")
def make_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path], Scene]]:
    """Scenes over one upstream that has the cast; storages that several rows begin with are filled once."""
    folder = tmp_path_factory.mktemp("leaks")
    upstream = Registry(
        binary=program("registry-3.1.2"),
        storage=folder / "upstream",
        config=folder / "upstream.yml",
        log=folder / "upstream.log",
        port=free_port(),
    )
    upstream.configure(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{upstream.storage}'}}}}\n"
        f"http: {{addr: '127.0.0.1:{upstream.port}'}}\nlog: {{level: warn}}\n"
    )
    upstream.start()
    provoking.push_all(upstream)
    bases: dict[tuple[str, str], Path] = {}
    made: list[Scene] = []

    def make(version: str, where: Path) -> Scene:
        name = "v2" if version.startswith("2") else "v3"
        scene = Scene(
            series=Series(name=name, version=version, binary=program(f"registry-{version}")),
            upstream=upstream,
            folder=where,
            bases=bases,
            bases_folder=folder,
        )
        made.append(scene)
        return scene

    yield make
    for scene in made:
        scene.close()
    upstream.kill()


@pytest.fixture(scope="module")
def record() -> Iterator[Callable[[Row, str, Mapping[str, Any]], None]]:
    """Compares what was seen with what is committed; with LEAKS_RECORD=1 commits it instead."""
    known = leaks_document.recorded()
    new: dict[str, dict[str, Mapping[str, Any]]] = {}
    is_recording = bool(os.environ.get("LEAKS_RECORD"))

    def compare(row: Row, version: str, seen: Mapping[str, Any]) -> None:
        if is_recording:
            new.setdefault(str(row.number), {})[version] = dict(seen)
        else:
            assert seen == known[str(row.number)][version], "run with LEAKS_RECORD=1 and look at it"

    yield compare
    if is_recording:
        leaks_document.add(new)


@pytest.mark.parametrize(
    ("row", "version"),
    [
        pytest.param(row, version, id=f"{row.number}-{version}")
        for row in leaks.ROWS
        for version in row.versions
    ],
)
def test_a_leak_is_there_and_named_and_ended_and_pulls_work(
    row: Row,
    version: str,
    tmp_path: Path,
    make_scene: Callable[[str, Path], Scene],
    record: Callable[[Row, str, Mapping[str, Any]], None],
) -> None:
    scene = make_scene(version, tmp_path)
    try:
        left = row.provoke(scene)
        copy = tmp_path / "copy"
        shutil.copytree(scene.storage, copy)
        kept = _beside_a_registry(scene, left)
        named = _without_a_registry(scene, row, copy, left)
    finally:
        scene.close()
    record(row, version, {"named": named, "endedBy": [*row.ends, *kept]})


def _beside_a_registry(scene: Scene, left: Left) -> list[str]:
    """Steps 2 and 3; `keep` if the keeper ended it."""
    witness = provoking.plant_witness(scene.storage)
    paths = {path for leak, found in left.items() if leak != GONE for path in found}
    with scene.running() as cache:
        eventually("the witness to expire", lambda: not witness.exists(), saw=cache.tail)
        time.sleep(0.2)
        assert _lost(scene.storage, paths) == set(), "the control must leak"
        _passes(scene.storage)
        ours = {path for leak in left.keys() - LEFT_BY_THE_KEEPER for path in left[leak]}
        assert _lost(scene.storage, paths) >= ours
        assert _lost(scene.storage, paths) == ours, "directories are not removed here"
        _pull(cache)
    return [leaks.KEEP] if ours else []


def _passes(storage: Path) -> None:
    """The keeper as it runs by default, its clock days ahead."""
    arguments = ["--series=v3", f"--ttl={provoking.TTL}", "--upstream-url=http://127.0.0.1:1"]
    options = settings.parse([f"--storage={storage}", *arguments])
    clock, board = Ahead(), Board()
    keeper = Keeper(options, FileStore(storage), clock, board)
    for _ in range(PASSES):
        keeper.sweep()
        clock.by += PASS
    assert board.latest().last_error == ""


def _without_a_registry(scene: Scene, row: Row, storage: Path, left: Left) -> list[str]:
    """Step 4; the classes that audit named."""
    ttl = durations.parse_go_ns(row.ttl if scene.series.name == "v3" else TTL_OF_2_8)
    before = _audit(storage, ttl)
    for leak, paths in left.items():
        _assert_named(before, leak, paths)
    reachable = {path for leak in (Leak.UNCOVERED, Leak.BEYOND) for path in left.get(leak, ())}
    others = {path for leak, found in left.items() if leak != GONE for path in found} - reachable
    served = _served(storage, others)
    _sweep(storage)
    assert _served(storage, others) == served, "sweep removes nothing that a pull could get"
    assert _lost(storage, others) == others
    assert _lost(storage, reachable) == set()
    if leaks.RESEED in row.ends:
        assert _classes(_audit(storage, ttl)) <= {Leak.UNCOVERED.value, Leak.BEYOND.value}
        _reseed(storage, ttl)
        covered = _audit(storage, ttl)
        assert (_classes(covered), covered["state"]["gone"]) == (set(), 0)
        _reseed(storage, SOON)
        with scene.running(storage):
            eventually(
                "everything to expire", lambda: not _served(storage), saw=lambda: _served(storage)
            )
        _sweep(storage)
        assert _links(storage) == []
    assert _classes(_audit(storage, ttl)) == set()
    with scene.running(storage) as cache:
        _pull(cache)
    return sorted(leak.value if isinstance(leak, Leak) else leak for leak in left)


def _assert_named(report: Mapping[str, Any], leak: Leak | str, paths: set[str]) -> None:
    if not isinstance(leak, Leak):
        assert report["state"][leak] == len(paths)
        return
    (row,) = (row for row in report["leaks"] if row["class"] == leak.value)
    names = {_name(leak, path) for path in paths}
    assert row["count"] == len(names), (row, names)
    assert set(row["examples"]) <= names


def _name(leak: Leak, path: str) -> str:
    """What audit calls it: the key, the directory of a bad link, or the path."""
    if leak in (Leak.UNCOVERED, Leak.BEYOND):
        return provoking.key(path)
    is_link = leak in (Leak.BAD_LINK, Leak.DANGLING, Leak.ALIAS, Leak.BAD_NAME)
    return path.removesuffix("/link") if is_link else path


def _audit(storage: Path, ttl: int) -> Mapping[str, Any]:
    return audit.audit(FileStore(storage), Quiet(), ttl=ttl)


def _classes(report: Mapping[str, Any]) -> set[str]:
    return {row["class"] for row in report["leaks"]}


def _sweep(storage: Path) -> None:
    say = Sayer("sweep", as_json=True, is_silent=True)
    sweep.offline(FileStore(storage), Quiet(), say)
    again = sweep.offline(FileStore(storage), Quiet(), say)
    assert not again["changed"], again


def _reseed(storage: Path, ttl: int) -> None:
    told = reseed.reseed(FileStore(storage), Quiet(), ttl=ttl, spread=0, dry_run=False)
    assert told["entries"] == len(_links(storage))


def _links(storage: Path) -> list[Path]:
    """That an expiry removes."""
    repositories = storage / provoking.REPOSITORIES
    return [p for p in repositories.rglob("link") if "tags" not in p.parts]


def _served(storage: Path, leaked: Collection[str] = ()) -> set[str]:
    """Links that lead to data, neither of them leaked. A shared layer's data goes with the first of its links to expire
    (row 7), so at the end there may be links that lead nowhere."""
    found = {str(path.relative_to(storage)) for path in _links(storage)} - set(leaked)
    data = {path: provoking.data(provoking.digest(path)) for path in found}
    return {path for path in found if data[path] not in leaked and (storage / data[path]).exists()}


def _lost(storage: Path, paths: set[str]) -> set[str]:
    return {path for path in paths if not (storage / path).exists()}


def _pull(cache: Registry) -> None:
    """Every image, and what only a digest leads to, each checked against its digest."""
    for name in provoking.CAST:
        images.pull(cache.url, f"leak/{name}", "1")
    for content in provoking.BY_SHA512:
        wanted = provoking.by_sha512(content)
        status, _, body = provoking.fetch(f"{cache.url}/v2/leak/sha512/blobs/{wanted}")
        assert (status, body) == (200, content), cache.tail()


@pytest.mark.parametrize("version", leaks.EVERY)
def test_reseeded_keys_types_and_format_are_the_registrys_own(
    version: str, tmp_path: Path, make_scene: Callable[[str, Path], Scene]
) -> None:
    scene = make_scene(version, tmp_path)
    names = list(provoking.CAST)
    with scene.running() as cache:
        provoking.fill(cache, *names)
        scene.save(cache, lambda entries: len(entries) == len(provoking.links(*names)))
    own = cache.state.read_bytes()
    cache.state.unlink()
    _reseed(scene.storage, HOUR)
    ours = cache.state.read_bytes()
    assert provoking.kinds(json.loads(ours)) == provoking.kinds(json.loads(own))
    for written in (own, ours):
        assert state.format(state.parse(written).entries) == written, "byte for byte"


def test_the_document_tells_what_was_seen() -> None:
    assert leaks_document.DOCUMENT.read_text() == leaks_document.page(), "run: make generate"
    known = leaks_document.recorded()
    assert {number: set(found) for number, found in known.items()} == {
        str(row.number): set(row.versions) for row in leaks.ROWS
    }
