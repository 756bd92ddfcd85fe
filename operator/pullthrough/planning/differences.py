"""Does an object have all that we want of it, and if not, what is the first difference?

Only what we want counts: the API server's defaults and other managers' fields are theirs. A field that we no longer
want counts through the hash of the object as last applied.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pullthrough.models import constants, quantities
from pullthrough.models.snapshot import Object


def stamped(desired: Object) -> dict[str, Any]:
    """The desired object with the annotation that names it."""
    mark = hashlib.sha256(json.dumps(desired, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]
    marked = copy.deepcopy(dict(desired))
    marked["metadata"].setdefault("annotations", {})[constants.ANNOTATION_APPLIED] = mark
    return marked


def first_difference(live: Any, desired: Any, path: str = "") -> str | None:
    """Path and values of the first thing that is not as desired; None if all is."""
    if isinstance(desired, Mapping):
        if not isinstance(live, Mapping):
            return None if not desired and live is None else f"{path}: missing"
        for key in sorted(desired):
            found = first_difference(live.get(key), desired[key], f"{path}.{key}" if path else key)
            if found is not None:
                return found
        return None
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        return _first_in_list(live, desired, path)
    if live == desired or _same_quantity(live, desired):
        return None
    return f"{path}: {_short(live)} instead of {_short(desired)}"


def _first_in_list(live: Any, desired: Sequence[Any], path: str) -> str | None:
    if not isinstance(live, Sequence) or isinstance(live, str):
        return None if not desired and live is None else f"{path}: missing"
    if all(isinstance(item, Mapping) and "name" in item for item in [*live, *desired]):
        by_name = {item["name"]: item for item in live}
        for item in desired:
            name = item["name"]
            found = first_difference(by_name.get(name), item, f"{path}[{name}]")
            if found is not None:
                return found
        return None
    if len(live) != len(desired):
        return f"{path}: {len(live)} items instead of {len(desired)}"
    for index, (one, other) in enumerate(zip(live, desired, strict=True)):
        found = first_difference(one, other, f"{path}[{index}]")
        if found is not None:
            return found
    return None


def _same_quantity(live: Any, desired: Any) -> bool:
    """The API server rewrites 0.5 to 500m and 1024Mi to 1Gi."""
    if not isinstance(live, str | int) or not isinstance(desired, str | int):
        return False
    if isinstance(live, bool) or isinstance(desired, bool):
        return False
    try:
        return quantities.parse(live) == quantities.parse(desired)
    except (ValueError, ArithmeticError):
        return False


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
