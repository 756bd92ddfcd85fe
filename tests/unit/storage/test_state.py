"""What a registry makes of its state file: the table of trials with 2.8.2 and 3.1.1."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.storage import state
from pullthrough.storage.errors import StateMalformed
from pullthrough.storage.layout import Kind

KEY = "library/alpine@sha256:" + "a" * 64
GOOD = {"Key": KEY, "ExpiryData": "2026-11-29T18:44:10.211943012Z", "EntryType": 1}
NOON = int(datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()) * state.SECOND


def one(**changes: object) -> bytes:
    return json.dumps({KEY: {**GOOD, **changes}}).encode()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xef\xbb\xbf{}", "byte-order-mark"),
        (b'{"a', "not-json"),
        (b"{} x", "not-json"),
        (b'{"a": NaN}', "not-json"),
        (b"\xff{}", "not-json"),
        (b"[" * 100_000, "not-json"),
        (b"null", "null"),
        (b"[]", "not-an-object"),
        (b"3", "not-an-object"),
        (json.dumps({KEY: None}).encode(), "bad-entry"),
        (json.dumps({KEY: []}).encode(), "bad-entry"),
        (one(Key=3), "bad-entry"),
        (one(EntryType="1"), "bad-type"),
        (one(EntryType=1.0), "bad-type"),
        (one(EntryType=True), "bad-type"),
        (one(EntryType=2**63), "bad-type"),
        (one(ExpiryData="2026-11-29 18:44:10Z"), "bad-time"),
        (one(ExpiryData="2026-11-29T18:44:10"), "bad-time"),
        (one(ExpiryData="2026-11-29T24:00:00Z"), "bad-time"),
        (one(ExpiryData="2026-02-30T00:00:00Z"), "bad-time"),
        (one(ExpiryData="2026-11-29T18:44:10.Z"), "bad-time"),
        (one(ExpiryData=1764441850), "bad-time"),
        (one(ExpiryData=""), "bad-time"),
    ],
)
def test_what_crashes_a_registry_is_malformed_and_says_how(raw: bytes, problem: str) -> None:
    with pytest.raises(StateMalformed, match="reseed") as caught:
        state.parse(raw)
    assert caught.value.problem == problem


@pytest.mark.parametrize("raw", [b"{}", b"{}\n", b" {\n} "])
def test_an_empty_object_is_a_state_with_nothing_in_it(raw: bytes) -> None:
    assert state.parse(raw) == state.State(entries={}, odd={})


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (one(EntryType=7), "unknown EntryType"),
        (one(Key="library/alpine@sha256:" + "b" * 64), "map key and Key differ"),
        (one().replace(b"library/alpine", b"docker.io:443/library/alpine"), "Key is not"),
        (one().replace(b"@sha256:" + b"a" * 64, b":latest"), "Key is not"),
        (one(Key=None), "map key and Key differ"),
    ],
)
def test_what_loads_but_never_works_covers_nothing(raw: bytes, why: str) -> None:
    found = state.parse(raw)
    assert found.entries == {}
    assert next(iter(found.odd.values())).startswith(why)


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ({"key": KEY, "EXPIRYDATA": "2026-11-29T12:00:00Z", "entrytype": 1}, (NOON, 1)),
        ({"Key": KEY, "ExpiryData": "2026-11-29T12:00:00Z"}, (NOON, 0)),
        ({"Key": KEY, "EntryType": 1}, (state.ZERO_TIME, 1)),
        ({"Key": KEY, "ExpiryData": None, "EntryType": None}, (state.ZERO_TIME, 0)),
        ({"Key": KEY, "ExpiryData": "2026-11-29T14:30:00+02:30", "x": []}, (NOON, 0)),
        ({"Key": KEY, "ExpiryData": "2026-11-29T11:00:00.0000000019-01:00"}, (NOON + 1, 0)),
    ],
)
def test_fields_are_read_as_go_reads_them(
    fields: dict[str, object], entry: tuple[int, int]
) -> None:
    assert state.parse(json.dumps({KEY: fields}).encode()).entries == {KEY: entry}


digests = st.text("0123456789abcdef", min_size=64, max_size=64)
entries = st.dictionaries(
    st.builds("{}@sha256:{}".format, st.sampled_from(["a", "a/b", "Lib/x", "a.b/c__d"]), digests),
    st.builds(state.Entry, st.integers(0, 2**62), st.sampled_from(Kind)),
)


@given(entries)
def test_format_and_parse_are_inverse_and_the_bytes_are_json(some: dict[str, state.Entry]) -> None:
    raw = state.format(some)
    assert state.parse(raw) == state.State(entries=some, odd={})
    assert list(json.loads(raw)) == sorted(some)


def test_the_bytes_are_those_that_a_registry_writes() -> None:
    moment = state.parse_time("2026-11-29T18:44:10.2119Z")
    assert moment is not None
    raw = state.format({KEY: state.Entry(moment, Kind.BLOB)})
    assert raw.decode() == (
        f'{{"{KEY}":{{"Key":"{KEY}","ExpiryData":"2026-11-29T18:44:10.2119Z","EntryType":0}}}}'
    )
