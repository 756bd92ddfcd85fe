"""scheduler-state.json: what the registry would make of it, and writing it as the registry does.

The registry reads the file once, at its start, and panics on anything that its decoder refuses
(2.8:registry/handlers/app.go:322-325, v3.1.1:...:355-358): that is a crash loop, so parsing here is
as strict as Go's decoder and says which of the known ways it is wrong. What loads but can never
work (a key that is no reference, a map key that differs from Key) is told apart: it covers nothing
and is dropped at the next rewrite.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple, NoReturn

from pullthrough.storage import gojson, layout
from pullthrough.storage.errors import StateMalformed

SECOND = 1_000_000_000
"""Nanoseconds; all times of the storage programs are nanoseconds since 1970, as integers."""
ZERO_TIME = -62_135_596_800 * SECOND
"""Go's zero time, year 1: what a missing ExpiryData means. It fires at once."""
LATEST_TIME = 253_402_300_800 * SECOND - 1
"""The last instant of the year 9999: a registry that holds a later one can save no state again
(time.Time refuses to marshal). An offset can put an entry beyond; it then counts as this."""
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
_FOLDED = {"key": "Key", "expirydata": "ExpiryData", "entrytype": "EntryType"}
# As Go's time.Parse takes RFC 3339 (format.go: an hour of one digit, a comma, offsets of 24:60).
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d?):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
# An entry as registries and `format` write it, between `{` or `,` and the next.
_WRITTEN = re.compile(
    r'[{,]"([^"\\\x00-\x20\x7f-\U0010ffff]{1,600}+)":\{"Key":"\1",'
    r'"ExpiryData":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)",'
    r'"EntryType":([01])\}',
    re.ASCII,
)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_SHOWN = 100
"""Characters of a key that a message quotes."""


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
    if not raw.strip(b" \t\r\n"):
        _malformed(PROBLEM_EMPTY, "the file is empty: a write was torn")
    if raw.startswith(b"\xef\xbb\xbf"):
        _malformed(PROBLEM_BOM, "the file starts with a byte order mark")
    text = raw.decode("utf-8", "replace")
    state = _as_written(text)
    return state if state is not None else _decoded(text)


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
    lines: list[str] = []
    # Not all lines at once, and no second copy at the end: of a million, each is 256 MB.
    written = io.BytesIO()
    written.write(b"{")
    for key in sorted(entries):
        expiry, kind = entries[key]
        if len(lines) == 1000:
            written.write((",".join(lines) + ",").encode("ascii"))
            lines.clear()
        # Times of 100,000 entries lie within a few thousand seconds.
        seconds = expiry // SECOND
        text = whole.get(seconds)
        if text is None:
            text = whole[seconds] = format_time(seconds * SECOND)[:-1]
        fraction = f".{expiry - seconds * SECOND:09d}".rstrip("0").rstrip(".")
        lines.append(
            f'"{key}":{{"Key":"{key}","ExpiryData":"{text}{fraction}Z","EntryType":{kind:d}}}'
        )
    written.write((",".join(lines) + "}").encode("ascii"))
    return written.getvalue()


def parse_time(text: str) -> int | None:
    """Nanoseconds since 1970 of an RFC 3339 time with zone, or None where Go would refuse it.

    Within ZERO_TIME and LATEST_TIME: what lies beyond is past, or never, all the same.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction, sign = match[7], match[8]
    offset = int(match[9]) * 60 + int(match[10]) if sign else 0
    is_offset = not sign or (int(match[9]) <= 24 and int(match[10]) <= 60)
    if hour > 23 or minute > 59 or second > 59 or not is_offset:
        return None
    try:
        # Go has a year 0; Python's calendar repeats itself every 400 years as Go's does.
        days = date(year + 400 if year < 400 else year, month, day).toordinal() - 719_163
    except ValueError:
        return None
    if year < 400:
        days -= 146_097
    minutes = hour * 60 + minute - (offset if sign == "+" else -offset)
    seconds = days * 86_400 + minutes * 60 + second
    nanoseconds = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return max(ZERO_TIME, min(seconds * SECOND + nanoseconds, LATEST_TIME))


def format_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC with as many digits as needed, as Go's time.Time marshals itself; what lies
    beyond ZERO_TIME or LATEST_TIME as these."""
    seconds, rest = divmod(max(ZERO_TIME, min(nanoseconds, LATEST_TIME)), SECOND)
    whole = datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{whole}.{rest:09d}".rstrip("0") + "Z" if rest else whole + "Z"


def _as_written(text: str) -> State | None:
    """The state of a file that is written as registries write it; None if it is not. One pass of an
    expression: three times faster than decoding, for 100,000 entries and more."""
    entries: dict[str, Entry] = {}
    odd: dict[str, str] = {}
    is_known: dict[str, bool] = {}
    seconds_of: dict[str, int] = {}
    at = 0
    # Of whichever kind, the last of duplicates counts: a key is always actionable or always odd.
    for match in _WRITTEN.finditer(text):
        if match.start() != at or text[at] != ("," if at else "{"):
            return None
        at = match.end()
        key, whole, fraction, zone, kind = match.groups()
        expiry = seconds_of.get(whole) if zone == "Z" else None
        if expiry is not None:
            expiry += int(fraction.ljust(9, "0")) if fraction else 0
        else:
            expiry = parse_time(f"{whole}.{fraction or 0}{zone}")
            if expiry is None:
                _malformed_time(key)
            if zone == "Z":
                seconds_of[whole] = expiry - expiry % SECOND
        if _is_actionable(key, is_known):
            entries[key] = Entry(expiry, _KINDS[kind == "1"])
        else:
            odd[key] = _NO_REFERENCE
    is_whole = at > 0 and text[at : at + 2].rstrip("\n") == "}" and len(text) - at <= 2
    return State(entries=entries, odd=odd) if is_whole else None


_NO_REFERENCE = "Key is not repository@digest"


def _decoded(text: str) -> State:
    """The state of any other file, in every detail as Go decodes it. Raises StateMalformed."""
    try:
        members = gojson.read(text)
    except gojson.NotJson as error:
        _malformed(PROBLEM_NOT_JSON, f"the file is not JSON ({error}): a write was torn")
    if members == "null":
        _malformed(PROBLEM_NULL, "the file is `null`: the registry would die at its first fill")
    if isinstance(members, str):
        _malformed(PROBLEM_NOT_AN_OBJECT, "the file is not a JSON object")
    # What is wrong with a value counts even if another follows under the same key.
    found: dict[str, tuple[str, int, int] | None] = {}
    for map_key, fields in members:
        if fields != "null" and isinstance(fields, str):
            _malformed(PROBLEM_BAD_ENTRY, f"the entry {_shown(map_key)} is not an object")
        found[map_key] = _fields(map_key, fields) if isinstance(fields, list) else None
    entries: dict[str, Entry] = {}
    odd: dict[str, str] = {}
    is_known: dict[str, bool] = {}
    for map_key, entry in found.items():
        if entry is None:
            _malformed(PROBLEM_BAD_ENTRY, f"the entry {_shown(map_key)} is null")
        key, expiry, kind = entry
        if key != map_key:
            odd[map_key] = "map key and Key differ"
        elif kind not in (0, 1):
            odd[map_key] = "unknown EntryType"
        elif not _is_actionable(key, is_known):
            odd[map_key] = _NO_REFERENCE
        else:
            entries[key] = Entry(expiry, _KINDS[kind])
    return State(entries=entries, odd=odd)


def _fields(map_key: str, fields: list[gojson.Field]) -> tuple[str, int, int]:
    """Key, expiry and type as Go finds them: names in any case, the last one counts, unknown ones
    are ignored, null and absent = zero. Raises StateMalformed."""
    key, expiry, kind = "", ZERO_TIME, 0
    for name, literal in fields:
        if literal == "null":
            continue
        match _FOLDED.get(name.lower()):
            case "Key":
                if literal[0] != '"':
                    _malformed(PROBLEM_BAD_ENTRY, f"the Key of {_shown(map_key)} is not a string")
                key = gojson.unquote(literal)
            case "ExpiryData":
                time = parse_time(literal[1:-1]) if literal[0] == '"' else None
                if time is None:
                    _malformed_time(map_key)
                expiry = time
            case "EntryType":
                if not _INTEGER.fullmatch(literal) or not -(2**63) <= int(literal) < 2**63:
                    what = f"the EntryType of {_shown(map_key)} is not an integer"
                    _malformed(PROBLEM_BAD_TYPE, what)
                kind = int(literal)
            case _:
                pass
    return key, expiry, kind


def _is_actionable(key: str, is_known: dict[str, bool]) -> bool:
    """Whether layout.parse_key accepts the key, remembering repositories."""
    repository, at, digest = key.rpartition("@")
    is_repository = is_known.get(repository)
    if is_repository is None:
        is_repository = is_known[repository] = bool(at) and layout.is_repository(repository)
    return is_repository and layout.is_digest(digest)


def _shown(key: str) -> str:
    """A key as a message can quote it, whatever it holds and however long it is."""
    return repr(key if len(key) <= _SHOWN else key[:_SHOWN] + "...")


def _malformed_time(key: str) -> NoReturn:
    _malformed(PROBLEM_BAD_TIME, f"the ExpiryData of {_shown(key)} is not an RFC 3339 time")


def _malformed(problem: str, what: str) -> NoReturn:
    msg = f"{layout.STATE}: {what}; stop the registry and run `pullthrough reseed` to rebuild it"
    raise StateMalformed(problem, msg)
