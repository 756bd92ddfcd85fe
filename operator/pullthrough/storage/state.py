"""scheduler-state.json: what the registry would make of it, and writing it as the registry does.

The registry reads the file once, at its start, and panics on anything that its decoder refuses
(2.8:registry/handlers/app.go:322-325, v3.1.1:...:355-358): that is a crash loop, so parsing here is
as strict as Go's decoder and says which of the known ways it is wrong. What loads but can never
work (a key that is no reference, a map key that differs from Key) is told apart: it covers nothing
and is dropped at the next rewrite.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

from pullthrough.storage import layout
from pullthrough.storage.errors import StateMalformed

SECOND = 1_000_000_000
"""Nanoseconds; all times of the storage programs are nanoseconds since 1970, as integers."""
ZERO_TIME = -62_135_596_800 * SECOND
"""Go's zero time, year 1: what a missing ExpiryData means. It fires at once."""
EMPTY = b"{}"
"""The state of a registry with nothing scheduled."""

# Problems of a malformed file, one word each (facts: 0 bytes, truncated, BOM, null, ...).
PROBLEM_EMPTY = "empty"
PROBLEM_BOM = "byte-order-mark"
PROBLEM_NOT_JSON = "not-json"
PROBLEM_NULL = "null"
PROBLEM_NOT_AN_OBJECT = "not-an-object"
PROBLEM_BAD_ENTRY = "bad-entry"
PROBLEM_BAD_TIME = "bad-time"
PROBLEM_BAD_TYPE = "bad-type"
PROBLEM_TOO_LARGE = "too-large"

_KINDS = (layout.Kind.BLOB, layout.Kind.MANIFEST)
_FIELDS = ["Key", "ExpiryData", "EntryType"]
_FOLDED = {"key": "Key", "expirydata": "ExpiryData", "entrytype": "EntryType"}
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d+))?"
    r"(?:Z|([+-])((?:[01]\d|2[0-3])):([0-5]\d))",
    re.ASCII,
)


class Entry(NamedTuple):
    """One artifact's line: when it expires (nanoseconds since 1970) and how it is deleted."""

    expiry: int
    kind: layout.Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A state that a registry can start on.

    `entries` by key are those that it can act on; `odd` are the others, key -> why not.
    """

    entries: dict[str, Entry]
    odd: dict[str, str]


def parse(raw: bytes) -> State:
    """Read a state file's bytes. Raises StateMalformed for what a registry cannot start on.

    `null` as a whole is malformed too: the registry starts on it and dies at the first fill.
    """
    document = _document(raw)
    if not isinstance(document, dict):
        _malformed(PROBLEM_NOT_AN_OBJECT, "the file is not a JSON object")
    entries: dict[str, Entry] = {}
    odd: dict[str, str] = {}
    is_known: dict[str, bool] = {}
    seconds_of: dict[str, int] = {}
    for map_key, value in document.items():
        if not isinstance(value, dict):
            _malformed(PROBLEM_BAD_ENTRY, f"the entry {map_key!r} is not an object")
        is_plain = list(value) == _FIELDS and None not in value.values()
        fields = value if is_plain else _folded(value)
        key, expiry_text, kind = fields["Key"], fields["ExpiryData"], fields["EntryType"]
        if not isinstance(key, str):
            _malformed(PROBLEM_BAD_ENTRY, f"the Key of {map_key!r} is not a string")
        if type(kind) is not int or not -(2**63) <= kind < 2**63:
            _malformed(PROBLEM_BAD_TYPE, f"the EntryType of {map_key!r} is not an integer")
        expiry = ZERO_TIME if expiry_text is None else _expiry(expiry_text, seconds_of)
        if expiry is None:
            _malformed(PROBLEM_BAD_TIME, f"the ExpiryData of {map_key!r} is not an RFC 3339 time")
        if key != map_key:
            odd[map_key] = "map key and Key differ"
        elif kind not in (0, 1):
            odd[map_key] = "unknown EntryType"
        elif not _is_actionable(key, is_known):
            odd[map_key] = "Key is not repository@digest"
        else:
            entries[key] = Entry(expiry, _KINDS[kind])
    return State(entries=entries, odd=odd)


def too_large(path: str, size: int, limit: int) -> StateMalformed:
    """The error for a file that is not even read."""
    msg = (
        f"{path}: {size} bytes, and no registry lives with a TTL state of more than {limit};"
        " stop the registry and run `pullthrough reseed` to rebuild it"
    )
    return StateMalformed(PROBLEM_TOO_LARGE, msg)


def format(entries: Mapping[str, Entry]) -> bytes:
    """The bytes that a registry would write for these entries: sorted, no spaces, no newline.

    Keys must be well-formed (`layout.parse_key`); they then need no escaping.
    """
    whole: dict[int, str] = {}
    lines = []
    for key, (expiry, kind) in sorted(entries.items()):
        # Times of 100,000 entries lie within a few thousand seconds.
        seconds = expiry // SECOND
        text = whole.get(seconds)
        if text is None:
            text = whole[seconds] = format_time(seconds * SECOND)[:-1]
        fraction = f".{expiry - seconds * SECOND:09d}".rstrip("0").rstrip(".")
        lines.append(
            f'"{key}":{{"Key":"{key}","ExpiryData":"{text}{fraction}Z","EntryType":{kind:d}}}'
        )
    return b"{%s}" % ",".join(lines).encode("ascii")


def parse_time(text: str) -> int | None:
    """Nanoseconds since 1970 of an RFC 3339 time with zone, or None where Go would refuse it."""
    return _parse_time(text)


def format_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC with as many digits as needed, as Go's time.Time marshals itself."""
    seconds, rest = divmod(nanoseconds, SECOND)
    whole = datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{whole}.{rest:09d}".rstrip("0") + "Z" if rest else whole + "Z"


def _expiry(text: Any, seconds_of: dict[str, int]) -> int | None:
    """_parse_time, remembering whole seconds: most entries share theirs with others."""
    if isinstance(text, str) and text[19:20] == "." and text[-1] == "Z":
        fraction = text[20:-1]
        seconds = seconds_of.get(text[:19])
        if seconds is not None and fraction.isascii() and fraction.isdigit():
            return seconds + int(fraction[:9].ljust(9, "0"))
    expiry = _parse_time(text)
    if expiry is not None and text[-1] == "Z":
        seconds_of[text[:19]] = expiry - expiry % SECOND
    return expiry


def _is_actionable(key: str, is_known: dict[str, bool]) -> bool:
    """Whether layout.parse_key accepts the key, remembering repositories."""
    repository, at, digest = key.rpartition("@")
    is_repository = is_known.get(repository)
    if is_repository is None:
        is_repository = is_known[repository] = bool(at) and layout.is_repository(repository)
    return is_repository and layout.is_digest(digest)


def _document(raw: bytes) -> Any:
    if not raw.strip(b" \t\r\n"):
        _malformed(PROBLEM_EMPTY, "the file is empty: a write was torn")
    if raw.startswith(b"\xef\xbb\xbf"):
        _malformed(PROBLEM_BOM, "the file starts with a byte order mark")
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _malformed(PROBLEM_NOT_JSON, f"the file is not JSON ({error}): a write was torn")
    if document is None:
        _malformed(PROBLEM_NULL, "the file is `null`: the registry would die at its first fill")
    return document


def _parse_time(text: Any) -> int | None:
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    whole, fraction, sign, hours, minutes = match.groups()
    try:
        seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    except ValueError:
        return None
    nanoseconds = seconds * SECOND
    if fraction:
        nanoseconds += int(fraction[:9].ljust(9, "0"))
    if sign:
        offset = (int(hours) * 3600 + int(minutes) * 60) * SECOND
        nanoseconds += -offset if sign == "+" else offset
    return nanoseconds


def _folded(value: dict[str, Any]) -> dict[str, Any]:
    """Fields as Go finds them: names in any case, unknown ones ignored, null and absent = zero."""
    fields: dict[str, Any] = {"Key": "", "ExpiryData": None, "EntryType": 0}
    for name, content in value.items():
        field = _FOLDED.get(name.lower())
        if field is not None and content is not None:
            fields[field] = content
    return fields


def _refuse_constant(text: str) -> NoReturn:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


def _malformed(problem: str, what: str) -> NoReturn:
    msg = f"{layout.STATE}: {what}; stop the registry and run `pullthrough reseed` to rebuild it"
    raise StateMalformed(problem, msg)
