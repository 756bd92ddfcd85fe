"""`pullthrough keep`: the loop, and everything with an effect that it starts.

Each second, whatever else is going on: the registry's port, the canary, a torn TTL state. Each
`sweep-interval`, one pass:

1. read the TTL state (entries);
2. walk the storage (survey), and learn what the state proves about each link (evidence): the
   backstop's links come from here;
3. decide what is due of what looks wrong (sweep), and remove it one file at a time, at `rate`: a
   minute's worth, and the next pass comes soon if there is more;
4. report.

One thread does it all, and every operation on the storage that comes back hands it over to what is
due each second (pace). So a long walk or removal holds nothing up, and the heart stands still only
where the storage does.

While small operations take longer than pace.SLOW on the average, the storage is busy with somebody
else's work: after each removal the keeper rests for four times as long as it took, and a walk rests
a second in every two.

SIGTERM ends it at once: every removal is one system call, and the next walk starts from what lies
there, so there is nothing to finish.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from types import FrameType
from typing import NoReturn, Protocol

from pullthrough.storage import marker, state
from pullthrough.storage.errors import StorageError
from pullthrough.storage.keeper import (
    disk,
    entries,
    evidence,
    repair,
    settings,
    survey,
    sweep,
    upstream,
    watch,
)
from pullthrough.storage.keeper.disk import Disk
from pullthrough.storage.keeper.entries import Listed
from pullthrough.storage.keeper.evidence import Coverage, Learner, LinkSeen
from pullthrough.storage.keeper.pace import PacedStore
from pullthrough.storage.keeper.report import Report, Sweep
from pullthrough.storage.keeper.server import Server
from pullthrough.storage.keeper.settings import Settings
from pullthrough.storage.keeper.survey import UPLOAD_LEAKS, Survey, Suspect
from pullthrough.storage.keeper.upstream import Probed
from pullthrough.storage.layout import Artifact
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
BATCH = 60
"""Seconds' worth of removals in one pass."""
REST_SHARE = 4
SHORTEST_REST = 1.0
LONGEST_REST = 30.0
"""On a slow storage: a removal is followed by a rest of so many times its duration, in seconds
within these."""
DISK_INTERVAL = 15 * SECOND
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


class Ports(Protocol):
    """What is known of the registry's port."""

    opened: int | None
    """When it was first seen open."""

    def take(self) -> bool:
        """Whether it was open at any look since the last call, the latest look included."""
        ...


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

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clock: Clock,
        board: Board,
        *,
        ports: Ports | None = None,
        look_at_disk: Callable[[], Disk | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._store = PacedStore(store, clock)
        self._store.on_operation = self._each_operation
        self._clock = clock
        self._board = board
        self._ports = ports
        self._look_at_disk = look_at_disk
        self._memory: dict[str, sweep.Seen] = {}
        self._coverage = Coverage()
        self._torn: repair.Torn | None = None
        self._last_deep: int | None = None
        self._ages = sweep.Ages(
            minimum=settings.minimum_age, upload=settings.upload_age, delay=settings.data_delay
        )
        self._period = -int(-SECOND // settings.rate)
        self._removed: int | None = None
        """When the latest removal was done."""
        self._last_second = clock.now()
        self._is_in_second = self._is_walking = False
        self._last_disk: int | None = None
        self.has_more = False
        """Whether the latest pass left something that is due."""

    @property
    def came_round(self) -> int:
        """When the latest operation on the storage came back."""
        return self._store.progressed

    # -- each second ---------------------------------------------------------------------------

    def second(self) -> None:
        """What is due each second; an error of the storage is told and ends nothing."""
        if self._is_in_second:
            return
        self._is_in_second = True
        try:
            if self._ports is not None:
                self.tick(port_was_open=self._ports.take(), opened=self._ports.opened)
        except StorageError as error:
            _complain(self._board, error.message, self._clock.now())
        finally:
            self._last_second = self._clock.now()
            self._is_in_second = False

    def _each_operation(self) -> None:
        if self._is_in_second or abs(self._store.progressed - self._last_second) < SECOND:
            return
        self.second()
        if self._is_walking and self._store.is_slow:
            self._rest(SHORTEST_REST)

    def tick(self, *, port_was_open: bool, opened: int | None) -> None:
        """The canary, the TTL state, the disk. Raises StorageError."""
        now = self._clock.now()
        start = self._own(marker.read_start(self._store))
        self._board.change(
            lambda report: replace(
                report,
                latency=self._store.latency / SECOND,
                start_uncovered=None if start is None else start.uncovered,
                start_problem=None if start is None else start.problem,
            )
        )
        digest = None if start is None else start.canary
        lies_there = digest is not None and watch.canary_lies_there(self._store, digest)
        verdict = watch.judge(
            has_canary=digest is not None, lies_there=lies_there, opened=opened, now=now
        )
        if verdict is not self._board.latest().canary:
            log("canary", verdict=verdict.value)
            self._board.change(lambda report: replace(report, canary=verdict))
        if self._last_disk is None or not 0 <= now - self._last_disk < DISK_INTERVAL:
            self._last_disk = now
            seen = self._look_at_disk()
            self._board.change(lambda report: replace(report, disk=seen))
        self._repair(port_was_open=port_was_open, now=now)

    def _own(self, start: marker.Start | None) -> marker.Start | None:
        """The start that this keeper belongs to, if this record is of it."""
        is_ours = start is not None and self._settings.template in ("", start.template)
        return start if is_ours else None

    def _repair(self, *, port_was_open: bool, now: int) -> None:
        self._torn = repair.observe(self._store, self._torn, port_is_open=port_was_open, now=now)
        torn = self._torn
        if torn is None or not repair.is_due(torn, now=now, after=self._settings.repair_after):
            return
        # Should it fail, the waiting starts anew: it is no work for each second.
        self._torn = None
        content = repair.rebuilt(self._store, now=self._clock.now(), ttl=self._settings.ttl)
        if repair.write(self._store, torn, content):
            log("repaired the TTL state", bytes=len(content))
            self._board.change(lambda report: replace(report, repairs=report.repairs + 1))

    # -- each pass -----------------------------------------------------------------------------

    def sweep(self) -> None:
        """One pass. Raises StorageError."""
        started = self._clock.now()
        self.has_more = False
        is_deep = self._is_deep(started)
        start = self._own(marker.read_start(self._store))
        canary_digest = None if start is None else start.canary
        self._is_walking = True
        try:
            found = self._walk(deep=is_deep, canary_digest=canary_digest)
        finally:
            self._is_walking = False
        if is_deep:
            self._last_deep = started
        decision = sweep.decide(found.suspects, self._memory, started, self._ages)
        kept = {} if is_deep else _of_uploads(self._memory)
        self._memory = {**kept, **decision.memory}
        reclaimed, bytes_, errors = self._remove(decision.due)
        self.has_more = not errors and (self.has_more or self._has_overflow(found, started))
        self._tell(found, reclaimed, bytes_, started, errors)

    def _has_overflow(self, found: Survey, now: int) -> bool:
        """Whether old suspects were too many to be remembered: others wait behind them."""
        return any(
            found.found[suspect.leak].count > survey.MOST
            and now - suspect.youngest >= sweep.minimum_age(suspect.leak, self._ages)
            for suspect in found.suspects
        )

    def _is_deep(self, now: int) -> bool:
        """Often enough to see each leftover twice within its age; at least every time it is short."""
        last = self._last_deep
        return last is None or now - last >= self._settings.upload_age // DEEP_WALKS

    def _walk(self, *, deep: bool, canary_digest: str | None) -> Survey:
        """Read the TTL state, then the storage; what both say together becomes self._coverage."""
        options = self._settings
        listed = self._read_state() if options.ttl is not None else "off"
        now = self._clock.now()
        learner: Learner | None = None
        settled = 0
        if isinstance(listed, Listed):
            learner = Learner(
                self._coverage,
                listed,
                now=now,
                ttl=options.ttl or 0,
                margin=options.backstop_margin,
                interval=options.state_interval,
                most=self._most,
            )

        def on_link(path: str, artifact: Artifact) -> None:
            nonlocal settled
            if listed != "missing" and (learner is None or learner.is_covered(artifact)):
                return
            facts = self._store.facts(path)
            if facts is None:
                return
            link = LinkSeen(path, artifact, facts)
            settled += now - link.youngest >= evidence.SETTLED
            if learner is not None:
                learner.take(link)

        found = survey.look(
            self._store,
            deep=deep,
            canary_digest=canary_digest,
            most=survey.MOST,
            on_link=on_link,
        )
        if learner is not None:
            self._coverage = learner.sum(found.links)
        elif listed == "missing":
            self._coverage = evidence.learn_missing(
                self._coverage, settled=settled, now=now, interval=options.state_interval
            )
        elif options.ttl is not None:
            self._coverage = evidence.learn_nothing(self._coverage)
        return found

    def _read_state(self) -> Listed | str:
        listed: Listed | str = "missing"
        for attempt in range(STATE_ATTEMPTS):
            if attempt:
                self._clock.sleep(0.2)
            due_before = self._clock.now() - evidence.SETTLED
            listed = entries.read(self._store, due_before=due_before)
            if isinstance(listed, Listed) or listed == "missing":
                break
        return listed

    @property
    def _most(self) -> int:
        """Removals in one pass."""
        return max(1, int(self._settings.rate * BATCH))

    def _remove(self, due: list[Suspect]) -> tuple[dict[str, int], int, list[str]]:
        """Links first: those of the backstop, then what is due (links before data)."""
        repositories = sweep.Repositories(self._store, self._clock)
        reclaimed: dict[str, int] = {}
        bytes_ = removals = 0
        errors: list[str] = []
        deadline = self._clock.now() + self._settings.sweep_interval
        for suspect in chain(self._coverage.expired, due):
            if removals >= self._most or self._clock.now() > deadline:
                self.has_more = True
                break
            self._await_turn()
            began = self._clock.now()
            try:
                removed = sweep.remove(self._store, suspect, repositories)
            except StorageError as error:
                errors.append(error.message)
                if len(errors) >= ERRORS_IN_A_PASS:
                    break
                continue
            if removed is not None:
                self._removed = self._clock.now()
                removals += 1
                reclaimed[removed.leak.value] = reclaimed.get(removed.leak.value, 0) + 1
                bytes_ += removed.bytes
            if self._store.is_slow:
                took = (self._clock.now() - began) / SECOND
                self._rest(min(max(REST_SHARE * took, SHORTEST_REST), LONGEST_REST))
        return reclaimed, bytes_, errors

    def _await_turn(self) -> None:
        """Between two removals lies one period of the rate, whatever passes they belong to."""
        while self._removed is not None:
            left = self._removed + self._period - self._clock.now()
            if not 0 < left <= self._period:
                # Over, or the clock was set back.
                return
            self._clock.sleep(min(left + 1000, SECOND) / SECOND)
            if self._clock.now() - self._last_second >= SECOND:
                self.second()

    def _rest(self, seconds: float) -> None:
        """Leave the storage to others; what is due each second goes on."""
        self._board.change(lambda report: replace(report, rested=report.rested + seconds))
        while seconds > 0:
            self._clock.sleep(min(seconds, TICK))
            seconds -= TICK
            self.second()

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
                artifacts=found.links,
                blobs=found.blobs,
                bytes=found.bytes,
                leaks=found.found,
                has_own_evidence=report.has_own_evidence or coverage.uncovered is not None,
                covered=coverage.covered,
                uncovered=coverage.uncovered,
                overdue=coverage.overdue,
                needs_prepare=coverage.needs_prepare,
                last_sweep=done,
                totals={n: report.totals.get(n, 0) + reclaimed.get(n, 0) for n in names},
                total_bytes=report.total_bytes + bytes_,
                errors=report.errors + bool(problems),
                last_error=problems[0] if problems else "",
                last_error_time=now if problems else report.last_error_time,
            )

        self._board.change(told)
        if reclaimed or problems or coverage.needs_prepare:
            log(
                "swept",
                artifacts=found.links,
                reclaimed=reclaimed,
                bytes=bytes_,
                seconds=round(done.seconds, 3),
                uncovered=coverage.uncovered,
                needsPrepare=coverage.needs_prepare,
                errors=len(problems),
                error=problems[0] if problems else "",
            )


def run(keeper: Keeper, board: Board, clock: Clock, options: Settings) -> NoReturn:
    """Until Stopped: an error ends a pass, not the loop."""
    next_sweep = clock.now()
    while True:
        keeper.second()
        if clock.now() >= next_sweep:
            try:
                keeper.sweep()
            except StorageError as error:
                _complain(board, error.message, clock.now())
            soon = min(options.data_delay, options.sweep_interval)
            next_sweep = clock.now() + (soon if keeper.has_more else options.sweep_interval)
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
        ports = PortWatch(options.registry, clock)
        keeper = Keeper(
            options,
            store,
            clock,
            board,
            ports=ports,
            look_at_disk=lambda: disk.look(options.storage),
        )
        server = Server(
            options.listen,
            latest=board.latest,
            is_healthy=lambda: clock.now() - keeper.came_round < HEALTHY,
            now=clock.now,
        )
        server.start()
        ports.start()
        threading.Thread(
            target=_probe, args=(options, clock, board), name="probe", daemon=True
        ).start()
        log("started", storage=options.storage, series=options.series, template=options.template)
        run(keeper, board, clock, options)
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


def _complain(board: Board, message: str, now: int) -> None:
    if board.latest().last_error != message:
        log("failed", error=message)
    board.change(
        lambda report: replace(
            report, errors=report.errors + 1, last_error=message, last_error_time=now
        )
    )


def _of_uploads(memory: dict[str, sweep.Seen]) -> dict[str, sweep.Seen]:
    """What only a deep walk sees again must survive the others."""
    return {path: seen for path, seen in memory.items() if seen.leak in UPLOAD_LEAKS}


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped
