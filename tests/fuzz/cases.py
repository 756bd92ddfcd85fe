"""State files that are known to be interesting, and a way to make more of them."""

from __future__ import annotations

import json

from hypothesis import strategies as st

KEY = "library/alpine@sha256:" + "a" * 64
OTHER = "a/b@sha256:" + "b" * 64
GOOD = {"Key": KEY, "ExpiryData": "2026-11-29T18:44:10.211943012Z", "EntryType": 1}


def document(**changes: object) -> bytes:
    """A state of one entry, with other fields."""
    return json.dumps({KEY: {**GOOD, **changes}}).encode()


def written(*entries: tuple[str, str, str]) -> bytes:
    """As a registry writes it: (key, time, type)."""
    lines = [
        f'"{key}":{{"Key":"{key}","ExpiryData":"{time}","EntryType":{kind}}}'
        for key, time, kind in entries
    ]
    return ("{" + ",".join(lines) + "}").encode()


TIMES = [
    *("2026-11-29T18:44:10Z", "2026-11-29T18:44:10.5Z", "2026-11-29T18:44:10,5Z"),
    *("2026-11-29T8:44:10Z", "2026-11-29T08:4:10Z", "2026-11-29T123:44:10Z"),
    *("2026-11-29T23:59:60Z", "2026-11-29T24:00:00Z", "2026-02-29T00:00:00Z"),
    *("2028-02-29T00:00:00Z", "2000-02-29T00:00:00Z", "1900-02-29T00:00:00Z"),
    *("0000-02-29T00:00:00Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    *("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+24:60"),
    *("10000-01-01T00:00:00Z", "2026-11-29T18:44:10+24:60", "2026-11-29T18:44:10+25:00"),
    *("2026-11-29T18:44:10-00:61", "2026-11-29T18:44:10+0100", "2026-11-29T18:44:10+01"),
    *("2026-11-29t18:44:10Z", "2026-11-29T18:44:10z", "2026-11-29T18:44:10.Z"),
    *("2026-11-29T18:44:10.1234567899Z", "2026-11-29T18:44:10." + "9" * 50 + "Z"),
    *(" 2026-11-29T18:44:10Z", "2026-11-29T18:44:10Z ", "", "Z", "null", "2026-13-01T00:00:00Z"),
    *(
        "2026-00-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "+026-01-01T00:00:00Z",
        "2026-1-01T00:00:00Z",
    ),
    *("٢٠٢٦-11-29T18:44:10Z", "2026-11-29T18:44:10.٢Z", "2026-11-29T18:44:10+٠1:00"),
]
KEYS = [
    *("library/alpine@sha256:" + "a" * 63, "library/alpine:latest", "", "@", "a\\u0062", "a\\\\b"),
    *("docker.io:443/library/alpine@sha256:" + "a" * 64, "Lib@sha256:" + "a" * 64),
    *("a/b@sha512:" + "c" * 128, "a/b@sha384:" + "c" * 96, "a/b@md5:" + "c" * 32),
    *("\\ud800", "\\ud83d\\ude00", "\\udc00\\ud800", "\u00e9", "\x7f", "\u2028"),
]
_ONE = written((KEY, TIMES[0], "1"))
CASES: list[bytes] = [
    *(
        b"",
        b" ",
        b"{}",
        b" {} \n",
        b"{} x",
        b"{}{}",
        b"null",
        b" null ",
        b"[]",
        b"3",
        b'""',
        b"true",
    ),
    *(
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b"\0",
        b"{",
        b"}",
        b"{]",
        b"[}",
        b"[[]",
        b"{,}",
        b"{:}",
    ),
    *(
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b'{"a":1 "b":2}',
        b"{a:1}",
        b"{'a':1}",
        b'{"a":1}',
        b"[1,]",
    ),
    *(
        b'{"a":null}',
        b'{"a":[]}',
        b'{"a":{}}',
        b'{"":{}}',
        b'{"a":"x"}',
        b'{"a":true}',
        b"//",
        b"{/**/}",
    ),
    *(
        b'{"a":nul}',
        b'{"a":{"x":NaN}}',
        b'{"a":{"x":Infinity}}',
        b'{"a":{"x":01}}',
        b'{"a":{"x":1.}}',
    ),
    *(
        b'{"a":{"x":.5}}',
        b'{"a":{"x":-}}',
        b'{"a":{"x":+1}}',
        b'{"a":{"x":1e}}',
        b'{"a":{"x":1e999}}',
    ),
    b'{"a":{"x":' + b"9" * 5000 + b"}}",
    b'{"a":{"EntryType":' + b"9" * 5000 + b"}}",
    *(
        b'{"a":{"x":"\\u00"}}',
        b'{"a":{"x":"\\x"}}',
        b'{"a":{"x":"\n"}}',
        b'{"a":{"x":"\x7f"}}',
        b'{"a":{"x":"',
    ),
    *(
        b'{"a":{"x":"\xff"}}',
        b'{"\xff":{"Key":"\xff"}}',
        b'{"\xed\xa0\x80":{}}',
        b'{"a\xe2\x82":{}}',
        b"\xff{}",
    ),
    # Duplicates: the last one counts, but what is wrong with an earlier one counts too.
    b'{"a":3,"a":{}}',
    b'{"a":null,"a":{}}',
    b'{"a":{},"a":null}',
    b'{"a":{"EntryType":"x"},"a":{}}',
    written((KEY, TIMES[0], "1"), (KEY, TIMES[1], "0")),
    written((KEY, TIMES[0], "1"), (OTHER, TIMES[1], "0"), (KEY, TIMES[2], "0")),
    b'{"a":{"EntryType":1,"EntryType":0}}',
    b'{"a":{"EntryType":"1","EntryType":0}}',
    b'{"a":{"EntryType":1,"EntryType":null}}',
    b'{"a":{"Key":"a","KEY":"b"}}',
    b'{"a":{"Key":"a","key":null}}',
    b'{"a":{"ExpiryData":"x","ExpiryData":"2026-11-29T18:44:10Z"}}',
    # Names in any case, by Unicode's folding, and by escapes.
    '{"a":{"\u212aey":"a"}}'.encode(),
    '{"a":{"\u212aEY":3}}'.encode(),
    '{"a":{"EntryT\u0131pe":"x","ENTRYTYPE":1}}'.encode(),
    b'{"a":{"\\u004bey":3}}',
    b'{"a":{"\\u004bey":"a"}}',
    # Go reads a time from the bytes between the quotes.
    b'{"a":{"ExpiryData":"2026-11-29T18:44:10\\u005a"}}',
    *(
        b'{"a":{"ExpiryData":{"x":1}}}',
        b'{"a":{"ExpiryData":["x"]}}',
        b'{"a":{"ExpiryData":false}}',
    ),
    *(
        b'{"a":{"Key":{"x":1}}}',
        b'{"a":{"Key":["x"]}}',
        b'{"a":{"EntryType":{}}}',
        b'{"a":{"EntryType":-0}}',
    ),
    *(
        b'{"a":{"EntryType":1.0}}',
        b'{"a":{"EntryType":1e0}}',
        b'{"a":{"EntryType":-9223372036854775808}}',
    ),
    *(b'{"a":{"EntryType":9223372036854775807}}', b'{"a":{"EntryType":9223372036854775808}}'),
    # Depth.
    b"[" * 9_999 + b"]" * 9_999,
    b'{"a":{"x":' + b"[" * 9_998 + b"]" * 9_998 + b"}}",
    b'{"a":{"x":' + b"[" * 9_999 + b"]" * 9_999 + b"}}",
    # Almost as a registry writes it.
    *(
        _ONE,
        _ONE + b"\n",
        _ONE + b"\n\n",
        _ONE + b" ",
        _ONE + b"}",
        _ONE[:-1],
        _ONE[1:],
        b"," + _ONE[1:],
    ),
    _ONE[:-1] + _ONE,
    _ONE[:-1] + b"," + _ONE[1:],
    _ONE[:-1] + b",}",
    _ONE[:-1] + b"]",
    _ONE.replace(b'"Key"', b'"key"'),
    _ONE.replace(b",", b", "),
    _ONE + b"\0",
    *(written((KEY, time, "1")) for time in TIMES),
    *(written((key, TIMES[0], "0")) for key in KEYS),
    *(
        written((KEY, TIMES[0], kind))
        for kind in ["2", "-1", "01", "1.0", '"1"', "null", "true", ""]
    ),
    *(document(ExpiryData=time) for time in TIMES),
]

_pieces = [KEY, OTHER, *TIMES, *KEYS, *'{}[]:,"\\ 019-+.TZ', "null", "EntryType", "Key", "\ufeff"]


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    raw = draw(st.sampled_from(CASES))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 4)))
        piece = draw(st.sampled_from(_pieces).map(str.encode) | st.binary(max_size=2))
        raw = raw[:start] + piece + raw[end:]
    return raw


mutated = _mutated()
