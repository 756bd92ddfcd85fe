"""The command line of `pullthrough keep`, as a frozen value."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from pullthrough.storage.program import duration, parser
from pullthrough.storage.state import SECOND

GRACE = 60 * SECOND
"""The member pod's grace period: so long may a draining registry have its port closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All spans in nanoseconds; `ttl` None: garbage collection is off, nothing ever expires."""

    storage: str
    series: str
    ttl: int | None
    upstream_url: str
    registry: tuple[str, int]
    listen: tuple[str, int]
    template: str
    sweep_interval: int
    minimum_age: int
    upload_age: int
    data_delay: int
    state_interval: int
    backstop_margin: int
    probe_interval: int
    rate: float
    grace: int = GRACE

    @property
    def repair_after(self) -> int:
        """So long must the same malformed bytes lie there behind a closed port."""
        return 2 * (self.grace + 30 * SECOND)


def parse(argv: Sequence[str]) -> Settings:
    """Read the options. Exits with 2 and a sentence on wrong usage, as argparse does."""
    options = parser("keep", "Sweep a serving registry's storage, watch its TTL state, report.")
    add = options.add_argument
    add("--series", required=True, choices=["v3", "v2"])
    ttl = options.add_mutually_exclusive_group(required=True)
    ttl.add_argument("--ttl", type=_positive, help="what the registry runs with")
    ttl.add_argument("--no-ttl", action="store_true", help="garbage collection is off")
    add("--upstream-url", required=True, help="what the registry fetches from")
    add("--registry", type=_address, default="127.0.0.1:5000", help="where the registry serves")
    add("--listen", type=_address, default="[::]:5002", help="for /metrics, /healthz, /report")
    add("--template", default="", help="id of the pod template")
    add("--sweep-interval", type=_positive, default="10m")
    add("--minimum-age", type=duration, default="1h", help="younger than this is never swept")
    add("--upload-age", type=duration, default="24h", help="same, for uploads and *.tmp")
    add("--data-delay", type=duration, default="60s", help="between seeing and removing")
    add("--state-interval", type=_positive, default="2m", help="between two reads of the TTL state")
    add("--backstop-margin", type=duration, default="10m", help="beyond the ttl, without an entry")
    add("--probe-interval", type=_positive, default="30s", help="between two looks at the upstream")
    add("--rate", type=_rate, default="50", help="removals per second at most")
    add("--grace", type=duration, default="60s", help="the pod's grace period")
    found = options.parse_args(argv)
    return Settings(
        storage=found.storage,
        series=found.series,
        ttl=found.ttl,
        upstream_url=found.upstream_url,
        registry=found.registry,
        listen=found.listen,
        template=found.template,
        sweep_interval=found.sweep_interval,
        minimum_age=found.minimum_age,
        upload_age=found.upload_age,
        data_delay=found.data_delay,
        state_interval=found.state_interval,
        backstop_margin=found.backstop_margin,
        probe_interval=found.probe_interval,
        rate=found.rate,
        grace=found.grace,
    )


def _positive(text: str) -> int:
    span = duration(text)
    if span == 0:
        msg = f"{text} must be more than nothing"
        raise argparse.ArgumentTypeError(msg)
    return span


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        msg = f"{text} is not a number of removals per second"
        raise argparse.ArgumentTypeError(msg)
    return rate


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        msg = f"{text} is not host:port"
        raise argparse.ArgumentTypeError(msg)
    return host.strip("[]"), int(port)
