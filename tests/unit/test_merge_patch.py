"""The merge patch that makes one status into another; RFC 7396 is the judge."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pullthrough.reconcile import merge_patch

LEAVES = st.one_of(st.integers(0, 3), st.booleans(), st.text("ab", max_size=2))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, to the letter."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


@given(OBJECTS, OBJECTS)
def test_it_makes_the_old_into_the_new(old: Any, new: Any) -> None:
    assert merged(old, merge_patch(old, new)) == new


@given(OBJECTS)
def test_it_is_empty_where_nothing_differs(same: Any) -> None:
    assert merge_patch(same, same) == {}
