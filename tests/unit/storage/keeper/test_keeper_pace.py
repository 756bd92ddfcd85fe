"""How the keeper goes about it. What decides: the rate, how fast the storage answers, what appears in the middle of a
batch, what is due each second while a walk or a batch lasts."""

import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace as changed
from itertools import pairwise
from pathlib import Path

import pytest

from pullthrough.storage import canary, layout, state
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.keeper import program
from pullthrough.storage.keeper.pace import PacedStore
from pullthrough.storage.keeper.program import Keeper
from pullthrough.storage.keeper.watch import Canary
from pullthrough.storage.store import FileStore
from tests.storage_trees import HOUR, SECOND, FakeClock, Tree
from tests.unit.storage.keeper.test_keeper_passes import (
    MINUTE,
    NOW,
    OPTIONS,
    TTL,
    Scene,
    data_path,
    plant_canary,
)

MILLISECOND = SECOND // 1000


class DelayingStore(FileStore):
    """Each operation takes `delay`; unlinks are noted with their time."""

    clock: FakeClock
    delay = 0

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.unlinked: list[tuple[int, str]] = []

    def names(self, directory: str) -> list[str] | None:
        self.clock.time += self.delay
        return super().names(directory)

    def directories(self, directory: str) -> list[str] | None:
        self.clock.time += self.delay
        return super().directories(directory)

    def facts(self, path: str):  # type: ignore[no-untyped-def]
        self.clock.time += self.delay
        return super().facts(path)

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        for found in super().read_each(directory, names, leaf, limit):
            self.clock.time += self.delay
            yield found

    def unlink(self, path: str) -> bool:
        self.clock.time += self.delay
        self.unlinked.append((self.clock.time, path))
        return super().unlink(path)


class Ports:
    """A registry that serves since `opened`."""

    opened: int | None = None

    def take(self) -> bool:
        return self.opened is not None


class SlowScene(Scene):
    """A scene on a storage that takes its time."""

    store: DelayingStore

    def __init__(self, root: Path, **options: object) -> None:
        store = DelayingStore(Tree(root).root)
        self.ports = Ports()
        super().__init__(root, changed(OPTIONS, **options), store)  # type: ignore[arg-type]
        store.clock = self.clock

    def new_keeper(self) -> Keeper:
        return Keeper(self.options, self.store, self.clock, self.board, ports=self.ports)

    def orphans(self, number: int) -> list[str]:
        return sorted(self.tree.data(f"orphan {n}".encode()) for n in range(number))


@pytest.fixture
def scene(tmp_path: Path) -> SlowScene:
    return SlowScene(tmp_path / "storage", rate=50.0)


# -- the rate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.7, 50.0, 333.0])
@pytest.mark.parametrize("delay", [0, 5 * MILLISECOND], ids=["at once", "5 ms"])
def test_between_two_removals_lies_at_least_one_period(
    tmp_path: Path, rate: float, delay: int
) -> None:
    scene = SlowScene(tmp_path / "storage", rate=rate)
    scene.cover({})
    scene.orphans(30)
    scene.store.delay = delay
    scene.passes(4)
    times = [time for time, _ in scene.store.unlinked]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) == 30
    assert min(gaps) >= SECOND / rate
    if not delay:
        assert sorted(gaps)[len(gaps) // 2] <= SECOND / rate + 2000, "and no slower than it may"


def test_the_rate_holds_across_passes(scene: SlowScene) -> None:
    scene.cover({})
    scene.orphans(1)
    scene.passes(1)
    scene.clock.time += HOUR
    late = scene.tree.data(b"another orphan")
    scene.passes(1, apart=0)
    scene.clock.time += 61 * SECOND
    scene.passes(1)
    assert [path for _, path in scene.store.unlinked][-1] == data_path(late)


def test_a_pass_removes_a_minutes_worth_and_the_next_comes_soon(tmp_path: Path) -> None:
    scene = SlowScene(tmp_path / "storage", rate=0.5)
    scene.cover({})
    scene.orphans(40)
    scene.passes(1)
    assert not scene.keeper.has_more
    assert len(scene.passes(1)) == 30
    assert scene.keeper.has_more
    assert len(scene.passes(1)) == 10
    assert not scene.keeper.has_more


# -- what appears in the middle of a batch ---------------------------------------------------------------------------------


class LinkingClock(FakeClock):
    """In its n-th sleep a registry fills over existing data."""

    left = -1
    link = staticmethod(lambda: None)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.left -= 1
        if self.left == 0:
            self.link()


@pytest.mark.parametrize("delay", [0, MILLISECOND // 10], ids=["at once", "0.1 ms"])
def test_data_that_a_new_repository_links_in_the_middle_of_a_batch_stay(
    tmp_path: Path, delay: int
) -> None:
    scene = SlowScene(tmp_path / "storage", rate=50.0)
    scene.clock = clock = LinkingClock(NOW)
    scene.store.clock = clock
    scene.keeper = scene.new_keeper()
    scene.store.delay = delay
    kept = scene.tree.layer("a/kept", b"kept")
    scene.cover({kept: 0})
    orphans = scene.orphans(200)
    scene.passes(1)
    clock.link = lambda: scene.tree.link("brand/new", "_layers", orphans[-1])  # type: ignore[assignment,method-assign,return-value]
    clock.left = 3
    gone = scene.passes(1)
    assert data_path(orphans[-1]) not in gone
    assert len(gone) == 199


def test_the_list_of_repositories_is_never_older_than_a_second(tmp_path: Path) -> None:
    """However slow it is to make: here one takes 3 s."""
    scene = SlowScene(tmp_path / "storage", rate=50.0)
    for number in range(60):
        scene.tree.layer(f"r/{number}", b"one layer")
    clock, store = scene.clock, scene.store
    repositories = program.sweep.Repositories(store, clock)
    store.delay = 50 * MILLISECOND
    repositories.latest()
    scene.tree.layer("r/new", b"one layer")
    store.delay = 0
    assert "r/new" in repositories.latest()
    clock.time += SECOND // 2
    scene.tree.layer("r/newer", b"one layer")
    assert "r/newer" in repositories.latest()


# -- a slow storage ----------------------------------------------------------------------------------------------------------


def test_latency_is_the_average_of_small_operations(tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    store = DelayingStore(Tree(tmp_path / "storage").root)
    store.clock = clock
    paced = PacedStore(store, clock)
    store.delay = 30 * MILLISECOND
    for _ in range(100):
        paced.facts("x")
    assert paced.latency == pytest.approx(30 * MILLISECOND, rel=0.01)
    assert paced.is_slow
    store.delay = 0
    for _ in range(16):
        paced.facts("x")
    assert not paced.is_slow
    clock_was_set = HOUR
    store.delay = clock_was_set
    paced.facts("x")
    store.delay = 0
    for _ in range(64):
        paced.facts("x")
    assert not paced.is_slow, "an hour is no latency"


def test_while_the_storage_answers_slowly_the_keeper_steps_back(scene: SlowScene) -> None:
    scene.cover({})
    scene.orphans(20)
    scene.passes(1)
    scene.store.delay = 40 * MILLISECOND
    scene.clock.time += MINUTE
    scene.passes(1)
    times = [time for time, _ in scene.store.unlinked]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) == 20, "slower, and still all of them"
    assert min(gaps) >= SECOND, "at full rate these were 0.02 s"
    assert scene.board.latest().rested >= 20
    scene.store.delay = 0
    rested = scene.board.latest().rested
    scene.passes(2)
    scene.orphans(40)
    scene.passes(2)
    assert len(scene.store.unlinked) == 60
    assert scene.board.latest().rested <= rested + 3, "it is quick again"


# -- what is due each second -------------------------------------------------------------------------------------------------


def test_a_long_removal_does_not_hold_up_the_canarys_verdict(tmp_path: Path) -> None:
    scene = SlowScene(tmp_path / "storage", rate=1.0)
    plant_canary(scene)
    scene.cover({})
    scene.orphans(50)
    scene.passes(1)
    scene.ports.opened = scene.clock.now()
    verdicts = watched(scene)
    scene.keeper.sweep()
    assert len(scene.store.unlinked) == 50
    assert verdicts, "the keeper looked while it removed"
    scene.clock.time = scene.ports.opened + 60 * SECOND
    scene.keeper.second()
    assert scene.board.latest().canary is Canary.FAILED


def watched(scene: SlowScene) -> list[int]:
    """When the canary was looked at."""
    seen: list[int] = []
    link = layout.link_path(canary.artifact("seed"))
    facts = scene.store.facts

    def noting(path: str):  # type: ignore[no-untyped-def]
        if path == link:
            seen.append(scene.clock.now())
        return facts(path)

    scene.store.facts = noting  # type: ignore[method-assign]
    return seen


def test_in_a_long_removal_and_a_long_walk_it_looks_every_second(tmp_path: Path) -> None:
    scene = SlowScene(tmp_path / "storage", rate=3.0)
    plant_canary(scene)
    scene.cover(scene.tree.populate())
    scene.orphans(100)
    scene.store.delay = 15 * MILLISECOND
    scene.ports.opened = scene.clock.now()
    scene.passes(1)
    began, seen = scene.clock.now(), watched(scene)
    scene.keeper.sweep()
    looks = [began, *seen, scene.clock.now()]
    assert scene.clock.now() - began > 30 * SECOND
    assert max(b - a for a, b in pairwise(looks)) < 2.5 * SECOND


def test_a_walk_that_makes_progress_is_alive_and_one_that_hangs_is_not(tmp_path: Path) -> None:
    scene = SlowScene(tmp_path / "storage")
    scene.cover(scene.tree.populate())
    ages: list[int] = []
    names = scene.store.names

    def noting(directory: str) -> list[str] | None:
        ages.append(scene.clock.now() - scene.keeper.came_round)
        return names(directory)

    scene.store.names = noting  # type: ignore[method-assign]
    scene.store.delay = 20 * SECOND
    began = scene.clock.now()
    scene.keeper.sweep()
    assert scene.clock.now() - began > program.HEALTHY, "the walk took longer than that"
    assert max(ages) < MINUTE
    hung = scene.keeper.came_round
    scene.clock.time += program.HEALTHY
    assert scene.keeper.came_round == hung, "nothing came back: /healthz is red"


def test_an_error_of_a_look_in_the_middle_of_a_walk_does_not_end_the_walk(tmp_path: Path) -> None:
    scene = SlowScene(tmp_path / "storage")
    scene.cover(scene.tree.populate())
    scene.store.delay = 100 * MILLISECOND
    read, reads = scene.store.read, [0]

    def failing(path: str, limit: int = 1 << 62) -> bytes | None:
        if path.endswith("start.json"):
            reads[0] += 1
            if reads[0] > 1:
                raise StorageUnreadable("start.json: Input/output error")
        return read(path, limit)

    scene.store.read = failing  # type: ignore[method-assign]
    scene.keeper.sweep()
    assert reads[0] > 2
    assert scene.board.latest().artifacts == 14
    assert scene.board.latest().errors > 1


# -- memory ------------------------------------------------------------------------------------------------------------------


def peak(scene: Scene) -> int:
    tracemalloc.start()
    try:
        scene.keeper.sweep()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_hardly_grows_with_what_is_cached(tmp_path: Path) -> None:
    """A path, a digest and a stat for each artifact are 1,200 bytes: 120 MB at 100,000."""
    peaks = []
    for repositories in (40, 140):
        scene = Scene(tmp_path / str(repositories))
        kinds = {
            scene.tree.layer(f"r/{n}", f"layer {n} {part}".encode()): 0
            for n in range(repositories)
            for part in range(10)
        }
        scene.tree.state_path.write_bytes(
            state.format({key: state.Entry(NOW + TTL, layout.Kind.BLOB) for key in kinds})
        )
        peaks.append(peak(scene))
        assert scene.board.latest().covered == len(kinds)
    assert (peaks[1] - peaks[0]) / 1000 < 200
