"""The report as Prometheus metrics: the one module of the storage programs with a dependency."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pullthrough.storage.keeper.report import Report
from pullthrough.storage.keeper.survey import Leak
from pullthrough.storage.keeper.watch import Canary
from pullthrough.storage.state import SECOND

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "pullthrough_keeper"


class _Reports(Collector):
    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    def describe(self) -> Iterator[Metric]:
        """Nothing: else the registry would collect once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Made anew from the report at each scrape: nothing is counted twice."""
        report = self._report()
        yield from _gauges(report)
        removed = CounterMetricFamily(
            f"{PREFIX}_removed_files", "Files removed, by class.", labels=["class"]
        )
        for leak in Leak:
            removed.add_metric([leak.value], report.totals.get(leak.value, 0))
        yield removed
        yield CounterMetricFamily(
            f"{PREFIX}_removed_bytes", "Bytes removed.", value=report.total_bytes
        )
        yield CounterMetricFamily(
            f"{PREFIX}_state_repairs", "Torn TTL states rebuilt.", value=report.repairs
        )
        yield CounterMetricFamily(
            f"{PREFIX}_errors", "Errors that ended a pass or a look.", value=report.errors
        )
        yield CounterMetricFamily(
            f"{PREFIX}_rested_seconds",
            "Seconds that the keeper waited because the storage answered slowly.",
            value=report.rested,
        )
        suspects = GaugeMetricFamily(
            f"{PREFIX}_leaks", "Files that look wrong at the last walk, by class.", labels=["class"]
        )
        suspect_bytes = GaugeMetricFamily(
            f"{PREFIX}_leaked_bytes", "Bytes of those files, by class.", labels=["class"]
        )
        for leak in Leak:
            found = report.leaks.get(leak)
            suspects.add_metric([leak.value], 0 if found is None else found.count)
            suspect_bytes.add_metric([leak.value], 0 if found is None else found.bytes)
        yield suspects
        yield suspect_bytes


def _gauges(report: Report) -> Iterator[Metric]:
    values: dict[str, tuple[str, float | None]] = {
        "artifacts": ("Blobs and manifests as linked in repositories.", report.artifacts),
        "stored_bytes": ("Bytes of all data on the storage.", report.bytes),
        "covered_artifacts": ("Artifacts that an entry covers.", report.covered),
        "uncovered_artifacts": ("Artifacts that no entry covers.", report.known_uncovered),
        "overdue_entries": ("Entries more than a minute past their time.", report.overdue),
        "needs_prepare": ("1 if only a start can cover the storage again.", report.needs_prepare),
        "upstream_reachable": ("1 if the upstream answered.", report.upstream.reachable),
        "storage_latency_seconds": (
            "Average duration of a small operation on the storage.",
            report.latency,
        ),
        "failing": ("1 if the last pass or look ended with an error.", bool(report.last_error)),
    }
    if report.last_error_time is not None:
        values["last_error_timestamp_seconds"] = (
            "When an error last ended a pass or a look.",
            report.last_error_time / SECOND,
        )
    if report.disk is not None:
        disk = report.disk
        values["disk_size_bytes"] = ("Size of the volume.", disk.size)
        values["disk_free_bytes"] = ("Bytes on the volume that may still be written.", disk.free)
        values["disk_inodes"] = ("Inodes of the volume; 0 if it has no such limit.", disk.inodes)
        values["disk_free_inodes"] = ("Inodes that are still free.", disk.inodes_free)
    if report.last_sweep is not None:
        sweep = report.last_sweep
        values["last_sweep_timestamp_seconds"] = (
            "When the last pass ended.",
            sweep.time / SECOND,
        )
        values["last_sweep_duration_seconds"] = ("How long it took.", sweep.seconds)
    for name, (text, value) in values.items():
        if value is not None:
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
    state = GaugeMetricFamily(
        f"{PREFIX}_canary", "1 for what became of the start's canary.", labels=["state"]
    )
    for canary in Canary:
        state.add_metric([canary.value], float(report.canary is canary))
    yield state


def exposition(report: Callable[[], Report]) -> Callable[[], bytes]:
    """A function that gives the text of /metrics."""
    registry = CollectorRegistry()
    registry.register(_Reports(report))
    return lambda: generate_latest(registry)
