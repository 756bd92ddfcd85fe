"""When what expires. What decides: now, ttl, spread, the entries before, link times on a change."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from pullthrough.storage import expiry
from pullthrough.storage.layout import Kind
from pullthrough.storage.state import Entry

NOW = 1_800_000_000 * expiry.SECOND
HOUR = 3600 * expiry.SECOND
TTL = 24 * HOUR
SPREAD = 1 * HOUR


def rules(now: int = NOW, **changes: object) -> expiry.Rules:
    return expiry.Rules(**{"now": now, "ttl": TTL, "spread": SPREAD, **changes})  # type: ignore[arg-type]


def digest(number: int) -> str:
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()


def keys(count: int, repository: str = "a/b") -> dict[str, Kind]:
    return {f"{repository}@{digest(number)}": Kind(number % 2) for number in range(count)}


artifacts = st.dictionaries(
    st.builds(
        lambda r, n: f"{r}@{digest(n)}", st.sampled_from(["a", "b", "a/b"]), st.integers(0, 30)
    ),
    st.sampled_from(Kind),
)
old = st.builds(Entry, st.integers(NOW - 2 * TTL, NOW + 3 * TTL), st.sampled_from(Kind))


@given(artifacts, st.data())
def test_whatever_was_there_all_is_covered_never_past_never_beyond_one_time_per_digest(
    some: dict[str, Kind], data: st.DataObject
) -> None:
    before = {key: data.draw(old) for key in some if data.draw(st.booleans())}
    before["gone/from/storage@" + digest(99)] = Entry(NOW + HOUR, Kind.BLOB)
    made = expiry.schedule(some, before, rules())
    assert made.entries.keys() == some.keys()
    assert all(NOW < entry.expiry <= NOW + TTL for entry in made.entries.values())
    by_digest = {(key.split("@")[1], entry.expiry) for key, entry in made.entries.items()}
    assert len(by_digest) == len({key.split("@")[1] for key in some})
    assert all(entry.kind is some[key] for key, entry in made.entries.items())


@given(artifacts)
def test_what_is_missing_expires_within_the_spread_before_switch_plus_ttl(
    some: dict[str, Kind],
) -> None:
    made = expiry.schedule(some, {}, rules())
    assert made.added == made.changed == len(some)
    for entry in made.entries.values():
        assert NOW + TTL - SPREAD < entry.expiry <= NOW + TTL


@given(artifacts, st.data(), st.integers(0, TTL // 2))
def test_repeating_changes_nothing_and_moves_no_expiry_later(
    some: dict[str, Kind], data: st.DataObject, elapsed: int
) -> None:
    before = {key: data.draw(old) for key in some}
    first = expiry.schedule(some, before, rules())
    at_once = expiry.schedule(some, first.entries, rules())
    assert at_once.changed == at_once.added == 0
    assert at_once.entries == first.entries
    still = {key: entry for key, entry in first.entries.items() if entry.expiry > NOW + elapsed}
    later = expiry.schedule({key: some[key] for key in still}, first.entries, rules(NOW + elapsed))
    assert later.entries == still


def test_a_valid_entry_is_kept_to_the_nanosecond() -> None:
    key = f"a/b@{digest(1)}"
    entry = Entry(NOW + 7 * HOUR + 123_456_789, Kind.BLOB)
    made = expiry.schedule({key: Kind.BLOB}, {key: entry}, rules())
    assert made.entries == {key: entry}
    assert made.changed == 0


def test_where_entries_of_one_digest_differ_the_latest_holds_for_all() -> None:
    some = {f"{repository}@{digest(1)}": Kind.BLOB for repository in ["a", "b", "c"]}
    before = {
        f"a@{digest(1)}": Entry(NOW + HOUR, Kind.BLOB),
        f"b@{digest(1)}": Entry(NOW + 2 * HOUR, Kind.BLOB),
    }
    made = expiry.schedule(some, before, rules())
    assert {entry.expiry for entry in made.entries.values()} == {NOW + 2 * HOUR}
    assert (made.added, made.changed) == (1, 2)


def test_a_few_past_entries_go_soon_and_spread() -> None:
    some = keys(1000)
    before = {
        key: Entry(NOW - HOUR if number < 400 else NOW + HOUR, kind)
        for number, (key, kind) in enumerate(some.items())
    }
    made = expiry.schedule(some, before, rules(rate=10))
    moved = [made.entries[key].expiry - NOW for key in list(some)[:400]]
    assert all(expiry.SOON <= after <= expiry.SOON + 40 * expiry.SECOND for after in moved)
    assert len(set(moved)) > 390


def test_more_than_half_past_is_like_missing() -> None:
    some = keys(10)
    before = {
        key: Entry(NOW - HOUR if number < 6 else NOW + HOUR, kind)
        for number, (key, kind) in enumerate(some.items())
    }
    made = expiry.schedule(some, before, rules())
    past = [made.entries[key].expiry for key in list(some)[:6]]
    assert all(NOW + TTL - SPREAD < time <= NOW + TTL for time in past)


def test_an_entry_of_the_wrong_kind_covers_nothing_unless_linked_as_both() -> None:
    key = f"a@{digest(1)}"
    before = {key: Entry(NOW + HOUR, Kind.MANIFEST)}
    assert expiry.schedule({key: Kind.BLOB}, before, rules()).added == 1
    both = expiry.schedule({key: Kind.BLOB}, before, rules(), either_kind={key})
    assert both.entries == before


@given(st.integers(0, TTL), st.integers(1, 3 * TTL), st.sampled_from([HOUR, 6 * HOUR, 4 * TTL]))
def test_a_changed_ttl_clamps_old_times_between_link_time_and_now_plus_ttl(
    age: int, ahead: int, ttl: int
) -> None:
    key = f"a@{digest(5)}"
    before = {key: Entry(NOW + ahead, Kind.BLOB)}
    changed = rules(ttl=ttl, spread=ttl // 4, link_times={key: NOW - age})
    (entry,) = expiry.schedule({key: Kind.BLOB}, before, changed).entries.values()
    assert min(NOW - age + ttl, NOW + ttl) <= entry.expiry <= NOW + ttl
    assert entry.expiry > NOW
    again = expiry.schedule({key: Kind.BLOB}, {key: entry}, changed)
    assert again.changed == 0


def test_a_raised_ttl_gives_links_of_one_time_no_one_instant() -> None:
    some = keys(100)
    before = {key: Entry(NOW + HOUR, kind) for key, kind in some.items()}
    changed = rules(ttl=2 * TTL, link_times=dict.fromkeys(some, NOW - HOUR))
    made = expiry.schedule(some, before, changed)
    assert len({entry.expiry for entry in made.entries.values()}) == 100


def test_the_default_spread_is_what_deletion_takes_within_a_minute_and_half_the_ttl() -> None:
    assert expiry.default_spread(10, TTL) == 60 * expiry.SECOND
    assert expiry.default_spread(100_000, TTL) == 2000 * expiry.SECOND
    assert expiry.default_spread(10, 60 * expiry.SECOND) == 30 * expiry.SECOND
    assert expiry.clamp_spread(TTL, TTL) == TTL // 2


def test_the_densest_window_counts_what_fires_together() -> None:
    times = [0, 1, 2, 30, 31, 60]
    some = {str(n): Entry(NOW + t * expiry.SECOND, Kind.BLOB) for n, t in enumerate(times)}
    assert expiry.densest(some) == 3
    assert expiry.densest({}) == 0
