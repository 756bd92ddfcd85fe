"""Conditions: transition times, and what is legal by the rules of kstatus.

What contributes: the old conditions, the new ones, whether a status changed, types that vanish unless True.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pullthrough.models import conditions
from pullthrough.models.conditions import Condition

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
EARLIER = "2026-01-01T00:00:00Z"


def condition(kind: str, status: str, reason: str, message: str = "") -> Condition:
    return Condition(
        type=kind, status=status, reason=reason, message=message, observed_generation=3
    )


READY = condition("Ready", "True", "Succeeded")
AVAILABLE = condition("Available", "True", "MembersReady")


def written(kind: str, status: str, reason: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": conditions.REASONS.get(reason, "m"),
        "observedGeneration": 3,
        "lastTransitionTime": EARLIER,
        **changes,
    }


def status(*written: dict[str, Any], observed: int = 3) -> dict[str, Any]:
    return {"observedGeneration": observed, "conditions": list(written)}


def test_a_new_condition_gets_the_time_of_the_pass_and_its_reasons_sentence() -> None:
    assert conditions.merge([], [READY], NOW) == [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Succeeded",
            "message": conditions.REASONS["Succeeded"],
            "observedGeneration": 3,
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }
    ]


def test_the_transition_time_stays_while_only_reason_and_message_change() -> None:
    old = [written("Ready", "False", "MemberStarting")]
    new = condition("Ready", "False", "MemberCrashing", "registry ended with 1")
    (merged,) = conditions.merge(old, [new], NOW)
    assert (merged["lastTransitionTime"], merged["message"]) == (EARLIER, "registry ended with 1")


def test_the_transition_time_moves_with_the_status() -> None:
    (merged,) = conditions.merge([written("Ready", "False", "MemberStarting")], [READY], NOW)
    assert merged["lastTransitionTime"] == "2026-01-02T03:04:05Z"


def test_merging_again_changes_nothing() -> None:
    once = conditions.merge([], [READY, AVAILABLE], NOW)
    assert conditions.merge(once, [AVAILABLE, READY], NOW + timedelta(hours=1)) == once


def test_conditions_are_sorted_and_what_is_no_longer_wanted_goes() -> None:
    old = [
        written("Migrating", "True", "MigrationRunning"),
        written("Stalled", "True", "InvalidSpec"),
    ]
    merged = conditions.merge(old, [READY, AVAILABLE], NOW)
    assert [entry["type"] for entry in merged] == ["Available", "Ready"]


@pytest.mark.parametrize("kind", sorted(conditions.PRESENT_ONLY_WHEN_TRUE))
def test_reconciling_and_stalled_are_written_only_while_true(kind: str) -> None:
    assert conditions.merge([], [condition(kind, "False", "Succeeded")], NOW) == []
    assert len(conditions.merge([], [condition(kind, "True", "RollingOut")], NOW)) == 1


def test_a_type_cannot_be_given_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        conditions.merge([], [READY, READY], NOW)


def test_an_endless_message_is_cut_to_what_the_crd_admits() -> None:
    (merged,) = conditions.merge([], [condition("Ready", "False", "InvalidSpec", "x" * 99999)], NOW)
    assert len(merged["message"]) == conditions.MESSAGE_LIMIT


@pytest.mark.parametrize(("kind", "reason"), [("Happy", "Succeeded"), ("Ready", "JustBecause")])
def test_types_and_reasons_that_no_table_knows_are_refused(kind: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"conditions\.(TYPES|REASONS)"):
        condition(kind, "True", reason)


def test_every_reason_is_camel_case_and_has_a_sentence() -> None:
    for reason, sentence in conditions.REASONS.items():
        assert re.fullmatch(r"([A-Z][a-z0-9]+)+", reason), reason
        assert re.fullmatch(r"[A-Zs].*\.", sentence), sentence


def test_times_are_written_in_utc() -> None:
    there = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert conditions.format_time(there) == "2026-01-02T03:04:05Z"


GOOD = status(
    written("Available", "True", "MembersReady"),
    written("Migrating", "False", "MigrationCompleted"),
    written("Ready", "True", "Succeeded"),
)


def test_what_merge_makes_is_legal() -> None:
    merged = conditions.merge([], [READY, AVAILABLE], NOW)
    assert conditions.check_legal({"observedGeneration": 3, "conditions": merged}, 3) == []
    assert conditions.check_legal(GOOD, 3) == []
    assert conditions.check_legal({"observedGeneration": -1}, 1) == []


@pytest.mark.parametrize(
    ("illegal", "problem"),
    [
        (status(*reversed(GOOD["conditions"])), "not sorted"),
        (status(*GOOD["conditions"], GOOD["conditions"][2]), "occurs twice"),
        (status(*GOOD["conditions"], observed=4), "ahead of generation"),
        (status(*GOOD["conditions"], observed=2), "ahead of the status's"),
        (status(written("Available", "True", "MembersReady")), "Ready is missing"),
        (status(written("Ready", "Maybe", "Succeeded")), "none of True, False, Unknown"),
        (status(written("Ready", "False", "not camel")), "not CamelCase"),
        (status(written("Ready", "False", "JustBecause")), "not in REASONS"),
        (status(written("Ready", "False", "Creating", message="")), "no message"),
        (status(written("Ready", "False", "Creating", lastTransitionTime="now")), "RFC 3339"),
        (
            status(
                written("Ready", "False", "Creating"), written("Reconciling", "False", "Creating")
            ),
            "present although",
        ),
        (
            status(
                written("Ready", "True", "Succeeded"), written("Stalled", "True", "InvalidSpec")
            ),
            "beside Stalled",
        ),
        (
            status(
                written("Available", "False", "MemberNotReady"),
                written("Ready", "True", "Succeeded"),
            ),
            "Available is not",
        ),
    ],
)
def test_an_illegal_status_is_called_so(illegal: dict[str, Any], problem: str) -> None:
    assert any(problem in found for found in conditions.check_legal(illegal, 3))
