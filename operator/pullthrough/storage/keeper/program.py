"""`pullthrough keep`: the loop, and everything with an effect that it starts.

Each second: the registry's port, the canary, a torn TTL state. Each `sweep-interval`, one pass:

1. walk the storage (survey);
2. read the TTL state and learn what it proves (evidence): the backstop's links come from here;
3. decide what is due of what looks wrong (sweep), and remove it one file at a time, at `rate`;
4. report.

SIGTERM ends it at once: every removal is one system call, and the next walk starts from what lies
there, so there is nothing to finish.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import NoReturn

from pullthrough.storage import inventory, marker, state
from pullthrough.storage.errors import StorageError
from pullthrough.storage.keeper import evidence, repair, settings, survey, sweep, upstream, watch
from pullthrough.storage.keeper.evidence import Coverage
from pullthrough.storage.keeper.report import Report, Sweep
from pullthrough.storage.keeper.server import Server
from pullthrough.storage.keeper.settings import Settings
from pullthrough.storage.keeper.survey import UPLOAD_LEAKS, Survey, Suspect
from pullthrough.storage.keeper.upstream import Probed
from pullthrough.storage.opening import open_store
from pullthrough.storage.program import printable
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import Clock, Store, SystemClock

TICK = 1.0
"""Seconds between two looks at the canary and the TTL state."""
PORT_TICK = 0.25
"""Seconds between two looks at the registry's port."""
STATE_ATTEMPTS = 5
"""Reads of the TTL state in one pass, until one is good."""
DEEP_WALKS = 24
"""Uploads and temporary files are looked for this often within the age that they must have."""
HEALTHY = 900 * SECOND
"""A loop that has not come round for so long is stuck (a file system that does not answer)."""
ERRORS_IN_A_PASS = 20
"""After so many refused removals the pass ends: the volume is read-only, most likely."""


class Stopped(BaseException):
    """SIGTERM came. Not an Exception: nothing on the way may take it for a failure."""


@dataclass(slots=True)
class Board:
    """The latest report, shared with the threads that serve it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    report: Report = field(default_factory=Report)

    def latest(self) -> Report:
        with self.lock:
            return self.report

    def change(self, change: Callable[[Report], Report]) -> None:
        with self.lock:
            self.report = change(self.report)


class PortWatch:
    """Looks at the registry's port all the time: "closed throughout" must not miss an opening."""

    def __init__(self, address: tuple[str, int], clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._was_open = True
        self.opened: int | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="port", daemon=True).start()

    def take(self) -> bool:
        """Whether it was open at any look since the last call, the latest look included."""
        was_open, self._was_open = self._was_open, False
        return was_open

    def _run(self) -> NoReturn:
        while True:
            if watch.is_open(self._address):
                self._was_open = True
                self.opened = self.opened or self._clock.now()
            time.sleep(PORT_TICK)


class Keeper:
    """What is remembered between passes; each may be lost at any time (see the module)."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, board: Board) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._board = board
        self._memory: dict[str, sweep.Seen] = {}
        self._coverage = Coverage()
        self._torn: repair.Torn | None = None
        self._last_deep: int | None = None
        self._ages = sweep.Ages(
            minimum=settings.minimum_age, upload=settings.upload_age, delay=settings.data_delay
        )
        self.came_round = clock.now()

    # -- each second ---------------------------------------------------------------------------

    def tick(self, *, port_was_open: bool, opened: int | None) -> None:
        """The canary and the TTL state. Raises StorageError."""
        now = self.came_round = self._clock.now()
        start = marker.read_start(self._store)
        digest = self._canary_of(start)
        lies_there = digest is not None and watch.canary_lies_there(self._store, digest)
        verdict = watch.judge(
            has_canary=digest is not None, lies_there=lies_there, opened=opened, now=now
        )
        if verdict is not self._board.latest().canary:
            log("canary", verdict=verdict.value)
            self._board.change(lambda report: replace(report, canary=verdict))
        self._repair(port_was_open=port_was_open, now=now)

    def _canary_of(self, start: marker.Start | None) -> str | None:
        """Of the start that this keeper belongs to."""
        is_ours = start is not None and self._settings.template in ("", start.template)
        return start.canary if start is not None and is_ours else None

    def _repair(self, *, port_was_open: bool, now: int) -> None:
        self._torn = repair.observe(self._store, self._torn, port_is_open=port_was_open, now=now)
        if self._torn is None or not repair.is_due(
            self._torn, now=now, after=self._settings.repair_after
        ):
            return
        found = survey.look(self._store, deep=False)
        content = repair.rebuilt(found, now=self._clock.now(), ttl=self._settings.ttl)
        if repair.write(self._store, self._torn, content):
            log("repaired the TTL state", artifacts=len(found.links))
            self._board.change(lambda report: replace(report, repairs=report.repairs + 1))
        self._torn = None

    # -- each pass -----------------------------------------------------------------------------

    def sweep(self) -> None:
        """One pass. Raises StorageError."""
        started = self._clock.now()
        is_deep = self._is_deep(started)
        canary_digest = self._canary_of(marker.read_start(self._store))
        found = survey.look(self._store, deep=is_deep, canary_digest=canary_digest)
        if is_deep:
            self._last_deep = started
        if self._settings.ttl is not None:
            self._learn(found, self._settings.ttl)
        decision = sweep.decide(found.suspects, self._memory, started, self._ages)
        kept = {} if is_deep else _of_uploads(self._memory)
        self._memory = {**kept, **decision.memory}
        reclaimed, bytes_, errors = self._remove(decision.due, found)
        self._tell(found, reclaimed, bytes_, started, errors)

    def _is_deep(self, now: int) -> bool:
        """Often enough to see each leftover twice within its age; at least every time it is short."""
        last = self._last_deep
        return last is None or now - last >= self._settings.upload_age // DEEP_WALKS

    def _learn(self, found: Survey, ttl: int) -> None:
        entries: dict[str, state.Entry] | str = "missing"
        for attempt in range(STATE_ATTEMPTS):
            if attempt:
                self._clock.sleep(0.2)
            entries = evidence.read_good(self._store)
            if not isinstance(entries, str) or entries == "missing":
                break
        now = self._clock.now()
        interval = self._settings.state_interval
        if isinstance(entries, str):
            if entries != "missing":
                self._coverage = evidence.learn_nothing(self._coverage)
                return
            bare = evidence.uncovered_links(self._store, found.links, {})
            settled = sum(now - link.youngest >= evidence.SETTLED for link in bare)
            self._coverage = evidence.learn_missing(
                self._coverage, settled=settled, now=now, interval=interval
            )
            return
        self._coverage = evidence.learn(
            self._coverage,
            links=len(found.links),
            uncovered=evidence.uncovered_links(self._store, found.links, entries),
            entries=entries,
            now=now,
            ttl=ttl,
            margin=self._settings.backstop_margin,
            interval=interval,
        )

    def _remove(self, due: list[Suspect], found: Survey) -> tuple[dict[str, int], int, list[str]]:
        """Links first: those of the backstop, then what is due (links before data)."""
        # New repositories since the walk count too: a link in one keeps its data.
        repositories = tuple(inventory.repositories(self._store)) if due else found.repositories
        batch = self._coverage.expired[: max(1, int(self._settings.rate * 60))]
        reclaimed: dict[str, int] = {}
        bytes_ = 0
        errors: list[str] = []
        for suspect in _chained(batch, due):
            try:
                removed = sweep.remove(self._store, suspect, repositories)
            except StorageError as error:
                errors.append(error.message)
                if len(errors) >= ERRORS_IN_A_PASS:
                    break
                continue
            if removed is not None:
                reclaimed[removed.leak.value] = reclaimed.get(removed.leak.value, 0) + 1
                bytes_ += removed.bytes
                self._clock.sleep(1 / self._settings.rate)
                self.came_round = self._clock.now()
        return reclaimed, bytes_, errors

    def _tell(
        self,
        found: Survey,
        reclaimed: dict[str, int],
        bytes_: int,
        started: int,
        errors: list[str],
    ) -> None:
        now = self._clock.now()
        coverage = self._coverage
        problems = [*errors, *(error.message for error in found.unreadable)]
        done = Sweep(time=now, seconds=(now - started) / SECOND, reclaimed=reclaimed, bytes=bytes_)

        def told(report: Report) -> Report:
            names = sorted({*report.totals, *reclaimed})
            return replace(
                report,
                artifacts=len(found.links),
                bytes=found.bytes,
                covered=coverage.covered,
                uncovered=coverage.uncovered,
                overdue=coverage.overdue,
                needs_prepare=coverage.needs_prepare,
                last_sweep=done,
                totals={n: report.totals.get(n, 0) + reclaimed.get(n, 0) for n in names},
                total_bytes=report.total_bytes + bytes_,
                errors=report.errors + bool(problems),
                last_error=problems[0] if problems else "",
            )

        self._board.change(told)
        if reclaimed or problems or coverage.needs_prepare:
            log(
                "swept",
                artifacts=len(found.links),
                reclaimed=reclaimed,
                bytes=bytes_,
                seconds=round(done.seconds, 3),
                uncovered=coverage.uncovered,
                needsPrepare=coverage.needs_prepare,
                errors=len(problems),
                error=problems[0] if problems else "",
            )


def run(keeper: Keeper, ports: PortWatch, board: Board, clock: Clock, interval: int) -> NoReturn:
    """Until Stopped: tick each second, sweep at the interval; an error ends a pass, not the loop."""
    next_sweep = clock.now()
    while True:
        try:
            keeper.tick(port_was_open=ports.take(), opened=ports.opened)
            if clock.now() >= next_sweep:
                next_sweep = clock.now() + interval
                keeper.sweep()
        except StorageError as error:
            _complain(board, error.message)
        clock.sleep(TICK)


def main(argv: list[str]) -> int:
    """The command line; ends with 0 on SIGTERM."""
    options = settings.parse(argv)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    clock, board = SystemClock(), Board()
    try:
        try:
            store = open_store(options.storage)
        except StorageError as error:
            sys.stderr.write(printable(error.message) + "\n")
            return 1
        keeper = Keeper(options, store, clock, board)
        server = Server(
            options.listen,
            latest=board.latest,
            is_healthy=lambda: clock.now() - keeper.came_round < HEALTHY,
            now=clock.now,
        )
        server.start()
        ports = PortWatch(options.registry, clock)
        ports.start()
        threading.Thread(
            target=_probe, args=(options, clock, board), name="probe", daemon=True
        ).start()
        log("started", storage=options.storage, series=options.series, template=options.template)
        run(keeper, ports, board, clock, options.sweep_interval)
    except Stopped:
        log("stopped")
        return 0


def log(message: str, **context: object) -> None:
    """One line of JSON for people and collectors."""
    stamp = state.format_time(time.time_ns())
    line = json.dumps({"time": stamp, "program": "keep", "message": message, **context})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _probe(options: Settings, clock: Clock, board: Board) -> NoReturn:
    """In a thread of its own: an upstream that hangs must not hold up the loop."""
    while True:
        probed = upstream.probe(options.upstream_url, now=clock.now())
        before: Probed = board.latest().upstream
        board.change(lambda report, probed=probed: replace(report, upstream=probed))  # type: ignore[misc]
        if before.reachable is not probed.reachable:
            log("upstream", reachable=probed.reachable, answer=probed.message)
        time.sleep(options.probe_interval / SECOND)


def _complain(board: Board, message: str) -> None:
    if board.latest().last_error != message:
        log("failed", error=message)
    board.change(lambda report: replace(report, errors=report.errors + 1, last_error=message))


def _of_uploads(memory: dict[str, sweep.Seen]) -> dict[str, sweep.Seen]:
    """What only a deep walk sees again must survive the others."""
    return {path: seen for path, seen in memory.items() if seen.leak in UPLOAD_LEAKS}


def _chained(*parts: Iterable[Suspect]) -> Iterable[Suspect]:
    for part in parts:
        yield from part


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped
