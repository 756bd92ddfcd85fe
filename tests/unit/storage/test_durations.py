"""Go durations, both ways."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough import durations


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("168h", 168 * 3600 * 10**9),
        ("1h30m", 5400 * 10**9),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("-1m", -60 * 10**9),
        ("+1m", 60 * 10**9),
        ("3us", 3000),
        ("3µs", 3000),
        ("2ms1ns", 2_000_001),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text: str, nanoseconds: int) -> None:
    assert durations.parse_go_ns(text) == nanoseconds


@pytest.mark.parametrize(
    "text", ["", "168", "1d", "banana", "h", ".s", "1 h", "-", "1h-1m", "9999999h", "1H", "1e3s"]
)
def test_what_go_refuses_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(durations.InvalidDuration, match="168h"):
        durations.parse_go(text)


@given(st.timedeltas(timedelta(days=-90_000), timedelta(days=90_000)))
def test_format_and_parse_are_inverse(duration: timedelta) -> None:
    assert durations.parse_go(durations.format_go(duration)) == duration


@pytest.mark.parametrize("text", ["168h", "1h30m", "1m", "90h0.5s", "0s"])
def test_the_shortest_spelling_stays_as_it_is(text: str) -> None:
    assert durations.format_go(durations.parse_go(text)) == text
