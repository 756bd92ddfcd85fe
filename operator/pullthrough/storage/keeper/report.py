"""What the keeper tells: one frozen value, its JSON for the operator, its metrics for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pullthrough.storage import state
from pullthrough.storage.keeper.upstream import Probed
from pullthrough.storage.keeper.watch import Canary

VERSION = 1


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
    bytes: int = 0
    covered: int = 0
    uncovered: int | None = None
    overdue: int = 0
    needs_prepare: bool = False
    last_sweep: Sweep | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    total_bytes: int = 0
    repairs: int = 0
    errors: int = 0
    last_error: str = ""


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
        "uncovered": report.uncovered,
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
    }
