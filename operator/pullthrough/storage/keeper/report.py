"""What the keeper tells: one frozen value, its JSON for the operator, its metrics for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pullthrough.storage import state
from pullthrough.storage.keeper.disk import Disk
from pullthrough.storage.keeper.survey import REMEDIES, Found, Leak
from pullthrough.storage.keeper.upstream import Probed
from pullthrough.storage.keeper.watch import Canary

VERSION = 1
LONGEST_EXAMPLE = 500
"""Characters: the operator reads no more than 64 KiB of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A pass over the storage that ended; `reclaimed` counts files by class."""

    time: int
    seconds: float
    reclaimed: Mapping[str, int]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is known now. `totals` and `total_bytes` are since this keeper started."""

    upstream: Probed = field(default_factory=Probed)
    canary: Canary = Canary.NONE
    artifacts: int = 0
    blobs: int = 0
    bytes: int = 0
    leaks: Mapping[Leak, Found] = field(default_factory=dict)
    covered: int = 0
    uncovered: int | None = None
    overdue: int = 0
    needs_prepare: bool = False
    start_uncovered: int | None = None
    start_problem: str | None = None
    """What the start that this keeper belongs to could not do."""
    has_own_evidence: bool = False
    """Whether a walk of the keeper's own has said more than the start."""
    disk: Disk | None = None
    latency: float = 0.0
    """Seconds that a small operation on the storage takes, on the average."""
    rested: float = 0.0
    """Seconds that were left to others because the storage was slow."""
    last_sweep: Sweep | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    total_bytes: int = 0
    repairs: int = 0
    errors: int = 0
    last_error: str = ""
    """What is wrong now; empty after a pass without an error."""
    last_error_time: int | None = None

    @property
    def pending_uncovered(self) -> int | None:
        """What the start said is not covered, until a walk knows better."""
        return None if self.has_own_evidence else self.start_uncovered

    @property
    def pending_problem(self) -> str | None:
        """What the start said is wrong, until a walk knows better."""
        return None if self.has_own_evidence else self.start_problem

    @property
    def known_uncovered(self) -> int | None:
        """The walk's number, or the start's, or None."""
        return self.uncovered if self.uncovered is not None else self.pending_uncovered


def as_json(report: Report, now: int) -> dict[str, Any]:
    """The shape of /report."""
    upstream, sweep = report.upstream, report.last_sweep
    return {
        "version": VERSION,
        "time": state.format_time(now),
        "upstream": {
            "reachable": upstream.reachable,
            "checked": None if upstream.checked is None else state.format_time(upstream.checked),
            "message": upstream.message,
        },
        "canary": report.canary.value,
        "artifacts": report.artifacts,
        "bytes": report.bytes,
        "covered": report.covered,
        "uncovered": report.known_uncovered,
        "startUncovered": report.pending_uncovered,
        "startProblem": report.pending_problem,
        "problem": report.pending_problem,
        "overdue": report.overdue,
        "needsPrepare": report.needs_prepare,
        "lastSweep": None
        if sweep is None
        else {
            "time": state.format_time(sweep.time),
            "reclaimed": dict(sweep.reclaimed),
            "bytes": sweep.bytes,
        },
        "lastError": report.last_error,
        "disk": None if report.disk is None else _disk(report.disk),
        "audit": {
            "version": VERSION,
            "artifacts": report.artifacts,
            "covered": report.covered,
            "blobs": report.blobs,
            "bytes": report.bytes,
            "leaks": [
                {
                    "class": leak.value,
                    "count": found.count,
                    "bytes": found.bytes,
                    "examples": [example[:LONGEST_EXAMPLE] for example in found.examples],
                    "remedy": REMEDIES[leak],
                }
                for leak, found in sorted(report.leaks.items(), key=lambda pair: pair[0].value)
            ],
        },
    }


def _disk(disk: Disk) -> dict[str, int]:
    return {
        "size": disk.size,
        "free": disk.free,
        "inodes": disk.inodes,
        "inodesFree": disk.inodes_free,
    }
