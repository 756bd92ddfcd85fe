"""Go durations (`168h`, `1h30m`, `1.5s`), as the registry's configuration spells them.

A leaf below all layers: the models check `gc.ttl` with it, the storage programs read their
options with it. Go's own grammar (time.ParseDuration, go1.22 src/time/format.go:1592), nothing
more: `1d` and `168` are refused, because the registry refuses the first and takes the second for
168 nanoseconds (v3.1.1:registry/proxy/proxyregistry.go:48-58).
"""

from __future__ import annotations

import re
from datetime import timedelta

UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
"""Nanoseconds in one of each unit; the two micro signs are different characters, as in Go."""

LARGEST_NS = 2**63 - 1
"""Go's durations are 64-bit nanoseconds: about 292 years."""

_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")


class InvalidDuration(ValueError):
    """The text is not a Go duration; the message says what one looks like."""


def parse_go_ns(text: str) -> int:
    """Nanoseconds of a Go duration, negative ones included.

    Raises InvalidDuration for everything that time.ParseDuration refuses.
    """
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, position = 0, 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None or not (part[1] or part[2]):
            raise _invalid(text)
        unit = UNITS_NS[part[3]]
        fraction = part[2] or ""
        total += int(part[1] or 0) * unit
        total += int(fraction or 0) * unit // 10 ** len(fraction)
        position = part.end()
    if not rest or total > LARGEST_NS:
        raise _invalid(text)
    return sign * total


def parse_go(text: str) -> timedelta:
    """A Go duration as a timedelta (microseconds; anything finer is cut off).

    Raises InvalidDuration for everything that time.ParseDuration refuses.
    """
    nanoseconds = parse_go_ns(text)
    microseconds = abs(nanoseconds) // 1_000
    return timedelta(microseconds=microseconds if nanoseconds >= 0 else -microseconds)


def format_go_ns(nanoseconds: int) -> str:
    """The shortest Go duration for a number of nanoseconds: `168h`, `1h30m`, `1.5s`, `0s`."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    hours, rest = divmod(rest, UNITS_NS["h"])
    minutes, rest = divmod(rest, UNITS_NS["m"])
    seconds, rest = divmod(rest, UNITS_NS["s"])
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return (
        sign
        + (f"{hours}h" if hours else "")
        + (f"{minutes}m" if minutes else "")
        + (f"{seconds}{fraction}s" if seconds or fraction else "")
    )


def format_go(duration: timedelta) -> str:
    """The shortest Go duration for a timedelta; `parse_go` of it gives the same timedelta."""
    microseconds = (duration.days * 86_400 + duration.seconds) * 1_000_000 + duration.microseconds
    return format_go_ns(microseconds * 1_000)


def _invalid(text: str) -> InvalidDuration:
    msg = f"{text!r} is not a duration: write hours, minutes and seconds as in 168h, 1h30m or 90s"
    return InvalidDuration(msg)
