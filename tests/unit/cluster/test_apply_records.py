"""Turning the record of a POST: whose entries, which operation, which subresource."""

from __future__ import annotations

from typing import Any

from pullthrough.cluster.apply import FIELDS_V1, turned
from pullthrough.models.constants import FIELD_MANAGER


def entry(operation: str, manager: str = FIELD_MANAGER, **more: Any) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, FIELDS_V1: {}, **more}


def test_our_update_becomes_an_apply_and_others_stay_as_they_are() -> None:
    kubectl, status = entry("Update", "kubectl"), entry("Update", subresource="status")
    assert turned([kubectl, entry("Update"), status]) == [kubectl, status, entry("Apply")]


def test_an_update_beside_an_apply_becomes_one_with_the_fields_of_both() -> None:
    one = entry("Apply", fieldsV1={"f:data": {"f:a": {}}, "f:metadata": {}})
    two = entry("Update", fieldsV1={"f:data": {"f:b": {}}})
    (after,) = turned([one, two])
    assert after["operation"] == "Apply"
    assert after[FIELDS_V1] == {"f:data": {"f:a": {}, "f:b": {}}, "f:metadata": {}}


def test_without_ours_nothing_changes() -> None:
    others = [entry("Update", "kubectl")]
    assert turned(others) == others
