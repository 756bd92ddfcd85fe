"""JSON as Go's decoder takes it, two levels deep: an object of objects, each literal as it stands.

Python's own decoder differs where it matters for a file that a Go program must load: it drops
earlier values of a duplicate key unseen, does not show a literal's spelling (Go reads a time from
the bytes between the quotes, escapes and all, and 1.0 is no integer), refuses bytes that are not
UTF-8 and integers of many digits, and gives up at its own depth. Only files that no registry wrote
come here (see pullthrough.storage.state).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

DEEPEST = 10_000
"""Levels that Go's scanner takes (encoding/json scanner.go: maxNestingDepth)."""

_TOKEN = re.compile(
    r"""[ \t\r\n]*+(?:
        (?P<mark>[{}\[\],:])
      | (?P<string>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+")
      | (?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)
      | (?P<word>true|false|null)
    )""",
    re.VERBOSE,
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_OBJECT, _ARRAY = "{", "["
_CLOSING = {_OBJECT: "}", _ARRAY: "]"}
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END = "value", "value or end", "key", "key or end"
_COLON, _COMMA, _NOTHING = "colon", "comma or end", "nothing"


class NotJson(Exception):
    """Go's scanner refuses the text; `at` is the index of the first character that it refuses."""

    def __init__(self, at: int) -> None:
        super().__init__(f"at character {at}")
        self.at = at


class Field(NamedTuple):
    """A member of an object of the second level. `literal` is as it stands in the text, with its
    quotes; for an object or array only its opening bracket."""

    name: str
    literal: str


Members = list[tuple[str, "list[Field] | str"]]
"""Key -> an object's fields, in their order and with all duplicates; or the literal of what is no
object."""


def read(text: str) -> Members | str:
    """The members of the object that a text is, or the literal of what it is instead.

    Raises NotJson.
    """
    whole: Members = []
    fields: list[Field] = []
    top = ""
    keys = ["", ""]
    containers: list[str] = []
    allowed = _VALUE
    for at, kind, literal in _tokens(text):
        depth = len(containers)
        is_key = allowed in {_KEY, _KEY_OR_END} and kind == "string"
        following = _after(allowed, containers, kind, literal)
        if following is None:
            raise NotJson(at)
        allowed = following
        if is_key:
            if depth <= 2:
                keys[depth - 1] = unquote(literal)
        elif kind != "mark" or literal in {_OBJECT, _ARRAY}:
            if depth == 0:
                top = literal
            elif depth == 1 and top == _OBJECT:
                fields = []
                whole.append((keys[0], fields if literal == _OBJECT else literal))
            elif depth == 2 and (top, containers[1]) == (_OBJECT, _OBJECT):
                fields.append(Field(keys[1], literal))
    if allowed != _NOTHING:
        raise NotJson(len(text))
    return whole if top == _OBJECT else top


def _after(allowed: str, containers: list[str], kind: str, literal: str) -> str | None:
    """What may follow a token, or None where it may not stand itself; keeps the containers."""
    match literal if kind == "mark" else kind:
        case "}" | "]" as closing:
            is_own = bool(containers) and _CLOSING[containers[-1]] == closing
            if not is_own or allowed not in {_COMMA, _KEY_OR_END, _VALUE_OR_END}:
                return None
            containers.pop()
            return _COMMA if containers else _NOTHING
        case ":":
            return _VALUE if allowed == _COLON else None
        case ",":
            following = _KEY if containers and containers[-1] == _OBJECT else _VALUE
            return following if allowed == _COMMA else None
        case "string" if allowed in {_KEY, _KEY_OR_END}:
            return _COLON
        case _ if allowed not in {_VALUE, _VALUE_OR_END}:
            return None
        case "{" | "[" as opening:
            containers.append(opening)
            if len(containers) > DEEPEST:
                return None
            return _KEY_OR_END if opening == _OBJECT else _VALUE_OR_END
        case _:
            return _COMMA if containers else _NOTHING


def unquote(literal: str) -> str:
    """The text of a string literal; half a surrogate pair is U+FFFD."""
    text = str(json.loads(literal)) if "\\" in literal else literal[1:-1]
    return _LONE_SURROGATE.sub("\ufffd", text)


def _tokens(text: str) -> Iterator[tuple[int, str, str]]:
    """Where each token starts, its kind, and it. Raises NotJson."""
    at, end = 0, len(text.rstrip(" \t\r\n"))
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotJson(at)
        kind = str(match.lastgroup)
        yield match.start(kind), kind, match[kind]
        at = match.end()
