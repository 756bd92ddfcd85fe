"""Our parser and Go's decoder agree on every file: a registry starts on exactly what we accept.

What decides: the syntax, the spelling of literals, duplicates, depth, what each field may be. The
cases are what fuzzing (`make fuzz`) and reading Go's sources found.
"""

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import decoder
from tests.fuzz.cases import CASES, KEY, document, mutated


@pytest.fixture(scope="module")
def go() -> Iterator[decoder.Decoder]:
    if not decoder.is_available():
        if os.environ.get("CI") == "true":
            pytest.fail("Go is not installed")
        pytest.skip("Go is not installed")
    with decoder.running() as running:
        yield running


@pytest.mark.parametrize("raw", CASES, ids=lambda raw: repr(raw[:60]))
def test_known_cases(go: decoder.Decoder, raw: bytes) -> None:
    assert decoder.difference(raw, go) is None


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated)
def test_states_that_are_bent(go: decoder.Decoder, raw: bytes) -> None:
    assert decoder.difference(raw, go) is None


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_fields_of_any_kind(go: decoder.Decoder, value: object) -> None:
    for name in ["Key", "ExpiryData", "EntryType", "other"]:
        assert decoder.difference(json.dumps({KEY: {name: value}}).encode(), go) is None
        assert decoder.difference(document(**{name: value}), go) is None
    assert decoder.difference(json.dumps({KEY: value}).encode(), go) is None
    assert decoder.difference(json.dumps(value).encode(), go) is None
