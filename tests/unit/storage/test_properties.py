"""What holds for every tree, state and time; hypothesis looks for those for which it does not."""

import hashlib
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pullthrough.storage import audit, expiry, layout, reseed, state
from pullthrough.storage.layout import Kind
from pullthrough.storage.state import Entry
from tests import interrupted
from tests.storage_programs import CASES, NOW, TTL, reachable
from tests.storage_trees import SECOND, FakeClock, Tree

bounded = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

# --- paths -----------------------------------------------------------------------------------------

part = st.sampled_from(
    [
        *("a", "Lib", "a-b", "a__b", "a..b", "_layers", "_manifests", "revisions", "tags", "link"),
        *("data", "sha256", "sha512", "0" * 64, "0" * 128, "00", "docker", "registry", "v2"),
        *("blobs", "repositories", ".", "", "\u00e9", "\udcff", "\n"),
    ]
)
path = st.lists(part, max_size=12).map("/".join) | st.builds(
    "docker/registry/v2/{}/{}".format,
    st.sampled_from(["repositories", "blobs"]),
    st.lists(part, max_size=7).map("/".join),
)


@given(path)
def test_what_parses_as_a_path_is_written_as_that_path(text: str) -> None:
    artifact = layout.parse_link_path(text)
    assert artifact is None or layout.link_path(artifact) == text
    digest = layout.parse_blob_path(text)
    assert digest is None or layout.blob_path(digest) == text
    key = layout.parse_key(text)
    assert key is None or layout.key(*key) == text


# --- states ----------------------------------------------------------------------------------------

times = st.integers(state.ZERO_TIME, state.LATEST_TIME)
keys = st.builds(
    "{}@sha256:{}".format,
    st.sampled_from(["a", "a/b", "Lib/x", "x" * 255]),
    st.integers(0, 9).map(lambda n: hashlib.sha256(bytes([n])).hexdigest()),
)
entries = st.dictionaries(keys, st.builds(Entry, times, st.sampled_from(Kind)))


@given(entries)
def test_a_state_is_read_as_it_was_written(some: dict[str, Entry]) -> None:
    assert state.parse(state.format(some)) == state.State(entries=some, odd={})


@given(entries, st.sampled_from([b" ", b"\n\n", b"\t"]))
def test_a_state_that_no_registry_wrote_is_read_the_same(
    some: dict[str, Entry], space: bytes
) -> None:
    raw = state.format(some).replace(b'"Key"', space + b'"Key"') + space
    assert state.parse(raw) == state.State(entries=some, odd={})


@given(st.integers(-(2**70), 2**70))
def test_a_time_is_read_as_it_was_written_within_what_can_be_written(nanoseconds: int) -> None:
    found = state.parse_time(state.format_time(nanoseconds))
    assert found == max(state.ZERO_TIME, min(nanoseconds, state.LATEST_TIME))


# --- expiries --------------------------------------------------------------------------------------


@bounded
@given(
    st.integers(1, 3000),
    st.integers(0, 2**32),
    st.integers(60 * SECOND, 10_000 * TTL),
    st.integers(0, state.LATEST_TIME // 2),
    st.sampled_from(["missing", "past", "some past", "beyond"]),
)
def test_expiries_keep_every_bound(count: int, seed: int, ttl: int, now: int, before: str) -> None:
    digests = [hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in range(count)]
    artifacts = {f"r{n % 3}@sha256:{digest}": Kind.BLOB for n, digest in enumerate(digests)}
    artifacts |= {f"again@sha256:{digest}": Kind.BLOB for digest in digests[::5]}
    old = {
        "missing": {},
        "past": {key: Entry(now - 1, Kind.BLOB) for key in artifacts},
        "some past": {
            key: Entry(now + (1 if n % 5 else -1) * (n + 1), Kind.BLOB)
            for n, key in enumerate(artifacts)
        },
        "beyond": {key: Entry(now + ttl + 1, Kind.BLOB) for key in artifacts},
    }[before]
    rules = expiry.Rules(now=now, ttl=ttl, spread=expiry.default_spread(count, ttl))
    made = expiry.schedule(artifacts, old, rules)
    assert made.entries.keys() == artifacts.keys()
    assert all(now < entry.expiry <= now + ttl for entry in made.entries.values())
    by_digest: dict[str, set[int]] = {}
    for key, entry in made.entries.items():
        by_digest.setdefault(key.partition("@")[2], set()).add(entry.expiry)
    assert all(len(found) == 1 for found in by_digest.values())
    again = expiry.schedule(artifacts, made.entries, rules)
    assert (again.entries, again.changed) == (made.entries, 0)
    # What was kept has the times that a registry gave it; a ttl too short for so many has no rate.
    assume(before != "some past" and ttl // 2 >= count * SECOND // rules.rate)
    firing = {digest: Entry(found.pop(), Kind.BLOB) for digest, found in by_digest.items()}
    window = 10 * SECOND
    assert expiry.densest(firing, window) <= rules.rate * 10 * 1.3 + 30


# --- trees -----------------------------------------------------------------------------------------

Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("layer", "manifest", "tagged", "dangling", "bad", "garbage", "emptied", "orphan"),
                *("payload", "dead tag", "upload", "alias", "leftover", "torn state", "aside"),
            ]
        ),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    max_size=12,
)


def build(tree: Tree, made: list[Step]) -> None:
    tree.mark()
    for what, place, number in made:
        repository, content = ["a", "a/b", "Lib/c"][place], f"content {number}".encode()
        digest = f"sha256:{hashlib.sha256(f'nothing {number}'.encode()).hexdigest()}"
        match what:
            case "layer":
                tree.layer(repository, content)
            case "manifest" | "tagged":
                body = b'{"schemaVersion": 2, "of": "%s"}' % content
                tree.manifest(repository, body, "latest" if what == "tagged" else None)
            case "dangling":
                tree.link(repository, "_layers", digest)
            case "bad" | "garbage":
                bad = tree.data(b"a bad link " + content)
                tree.link(repository, "_layers", bad, "" if what == "bad" else "not a digest")
            case "emptied" | "leftover":
                link = tree.link(repository, "_manifests/revisions", digest)
                if what == "emptied":
                    link.unlink()
                else:
                    link.rename(link.with_name("link.0190.tmp"))
            case "orphan" | "payload":
                tree.data(b'{"schemaVersion": 2}' if what == "payload" else b"orphan " + content)
            case "dead tag":
                tag = tree.repositories / repository / f"_manifests/tags/dead{number}/current/link"
                tag.parent.mkdir(parents=True, exist_ok=True)
                tag.write_text(digest)
            case "upload":
                upload = tree.repositories / repository / f"_uploads/{number}"
                upload.mkdir(parents=True, exist_ok=True)
                (upload / "data").write_bytes(content)
            case "alias":
                alias = "sha512:" + hashlib.sha512(content).hexdigest()
                tree.link(repository, "_layers", alias, tree.data(content))
            case "torn state":
                tree.state_path.write_bytes(b'{"torn')
            case "aside":
                (tree.root / f"scheduler-state.json.{number}.tmp").write_bytes(content)


@bounded
@given(steps)
def test_after_prepare_and_keep_audit_finds_nothing_and_nothing_served_is_gone(
    made: list[Step],
) -> None:
    with interrupted.in_memory() as directory:
        tree = Tree(directory / "storage")
        build(tree, made)
        served = reachable(tree)
        for program in ["prepare, first start", "keep", "prepare, first start"]:
            CASES[program].run(tree.store, FakeClock(NOW))
        assert served.items() <= reachable(tree).items()
        found: Any = audit.audit(tree.store, FakeClock(NOW), ttl=TTL)
        assert _without_directories(tree, found) == {}


def _without_directories(tree: Tree, found: Any) -> dict[str, int]:
    """Emptied directories of data stay: they are pruned before a registry starts only where names
    are looked at."""
    return {one["class"]: one["count"] for one in found["leaks"] if one["class"] != "emptied"}


@bounded
@given(steps)
def test_after_sweep_and_reseed_audit_finds_nothing_and_nothing_served_is_gone(
    made: list[Step],
) -> None:
    with interrupted.in_memory() as directory:
        tree = Tree(directory / "storage")
        build(tree, made)
        served = reachable(tree)
        for program in ["sweep", "reseed"]:
            CASES[program].run(tree.store, FakeClock(NOW))
        assert served.items() <= reachable(tree).items()
        found: Any = audit.audit(tree.store, FakeClock(NOW), ttl=TTL)
        assert found["leaks"] == []
        assert found["state"]["status"] == "whole"


@bounded
@given(steps)
def test_after_reseed_everything_is_covered_and_a_second_one_changes_nothing(
    made: list[Step],
) -> None:
    with interrupted.in_memory() as directory:
        tree = Tree(directory / "storage")
        build(tree, made)
        served = reachable(tree)
        CASES["reseed"].run(tree.store, FakeClock(NOW))
        once: dict[str, Any] = interrupted.everything(tree.root)
        again = reseed.reseed(tree.store, FakeClock(NOW), ttl=TTL, spread=None, dry_run=False)
        assert (again["added"], again["changed"]) == (0, 0)
        assert interrupted.everything(tree.root) == once
        assert served.items() <= reachable(tree).items()
        found: Any = audit.audit(tree.store, FakeClock(NOW), ttl=TTL)
        assert not {"uncovered", "beyond"} & {one["class"] for one in found["leaks"]}
        assert Path(tree.root, "scheduler-state.json").exists()
