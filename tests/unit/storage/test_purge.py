"""What a purge removes and what it leaves: shared layers, tags, the TTL state; killed at any step.

What decides: which links lead to which data, what manifests name, entries, and when links were
written.
"""

import argparse
import json
import os
from pathlib import Path

import pytest

from pullthrough import cli
from pullthrough.storage import layout, program, purge, reseed, state
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.purge import Wanted
from tests.storage_trees import (
    HOUR,
    SECOND,
    FakeClock,
    Killed,
    KillingStore,
    Tree,
    UnreadableStore,
)

NOW = 1_900_000_000 * SECOND
SILENT = program.Sayer("purge", as_json=False, is_silent=True)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "storage")


def image(tree: Tree, repository: str, tag: str | None, *layers: bytes) -> str:
    """An image with a configuration of its own; returns its manifest's digest."""
    config = f"config of {repository} {layers!r}".encode()
    digests = [tree.layer(repository, part).rpartition("@")[2] for part in (config, *layers)]
    content = {
        "schemaVersion": 2,
        "config": {"digest": digests[0]},
        "layers": [{"digest": digest} for digest in digests[1:]],
    }
    return tree.manifest(repository, json.dumps(content).encode(), tag).rpartition("@")[2]


def index(tree: Tree, repository: str, tag: str, *manifests: str) -> str:
    content = {"schemaVersion": 2, "manifests": [{"digest": digest} for digest in manifests]}
    return tree.manifest(repository, json.dumps(content).encode(), tag).rpartition("@")[2]


def grown(tree: Tree) -> Tree:
    """Two tags that share a layer, another repository with the same, an index; all covered."""
    image(tree, "library/app", "1", b"base" * 100, b"one" * 50)
    image(tree, "library/app", "2", b"base" * 100, b"two" * 30)
    image(tree, "other/app", "1", b"base" * 100)
    platforms = [image(tree, "multi/arch", None, name) for name in (b"amd64", b"arm64")]
    index(tree, "multi/arch", "latest", *platforms)
    reseed.reseed(tree.store, FakeClock(NOW), ttl=HOUR, spread=None, dry_run=False)
    return tree


def purged(tree: Tree, clock: int = NOW, **wanted: object) -> dict[str, object]:
    return dict(purge.offline(tree.store, FakeClock(clock), SILENT, Wanted(**wanted)))  # type: ignore[arg-type]


def everything(tree: Tree) -> list[str]:
    return sorted(str(path.relative_to(tree.root)) for path in tree.root.rglob("*"))


def has(tree: Tree, content: bytes) -> bool:
    return any(path.read_bytes() == content for path in tree.blobs.rglob("data"))


WANTED: dict[str, dict[str, object]] = {
    "repository": {"repository": "library/app"},
    "tag": {"image": purge.reference("app:1")},
    "index": {"image": purge.reference("quay.io/multi/arch")},
    "all": {"everything": True},
}


def test_an_image_goes_with_what_only_it_needs(tree: Tree) -> None:
    grown(tree)
    done = purged(tree, image=purge.reference("docker.io/library/app:1"))
    assert not has(tree, b"one" * 50)
    assert has(tree, b"base" * 100)
    assert has(tree, b"two" * 30)
    assert not (tree.repositories / "library/app/_manifests/tags/1").exists()
    assert done["entries"] == 3
    assert not any("/1/" in path for path in everything(tree) if "library/app" in path)


def test_a_shared_layer_goes_with_the_last_link_to_it(tree: Tree) -> None:
    grown(tree)
    purged(tree, repository="library/app")
    assert has(tree, b"base" * 100)
    assert not (tree.repositories / "library").exists()
    purged(tree, repository="other/app")
    assert not has(tree, b"base" * 100)


def test_a_tag_of_a_manifest_that_another_tag_names_goes_alone(tree: Tree) -> None:
    image(tree, "a/b", "1", b"layer")
    digest = image(tree, "a/b", "latest", b"layer")
    done = purged(tree, image=purge.reference("a/b:1"))
    assert "only the tag" in str(done["notes"])
    assert has(tree, b"layer")
    assert os.listdir(tree.repositories / "a/b/_manifests/tags") == ["latest"]
    purged(tree, image=purge.reference(f"a/b@{digest}"))
    assert not tree.repositories.joinpath("a").exists()


def test_an_index_goes_with_its_platforms_and_a_platform_alone(tree: Tree) -> None:
    grown(tree)
    purged(tree, image=purge.reference("multi/arch"))
    assert not (tree.repositories / "multi").exists()
    assert not has(tree, b"amd64")


def test_nothing_that_is_not_cached_is_a_failure(tree: Tree) -> None:
    grown(tree)
    for text in ["nginx", "library/app:3", f"library/app@sha256:{'0' * 64}"]:
        done = purged(tree, image=purge.reference(text))
        assert (done["changed"], len(list(done["notes"]))) == (False, 1)  # type: ignore[call-overload]


def test_all_leaves_nothing_but_an_empty_state(tree: Tree) -> None:
    grown(tree).mark()
    purged(tree, everything=True)
    assert {path: data for path, data in tree.files().items() if "marker" not in path} == {
        "scheduler-state.json": b"{}"
    }


# --- as much as must become free -------------------------------------------------------------------


def three(tree: Tree) -> list[bytes]:
    """Layers of 1,000 bytes, the first filled longest ago, the last of them expired."""
    contents = [bytes([number]) * 1000 for number in b"abc"]
    entries = {}
    for age, content in zip([30, 20, 10], contents, strict=True):
        key = tree.layer("a/b", content)
        path = tree.root / layout.link_path(
            layout.Artifact("a/b", key.rpartition("@")[2], layout.Kind.BLOB)
        )
        os.utime(path, ns=(NOW - age * HOUR, NOW - age * HOUR))
        expiry = NOW - SECOND if content == contents[2] else NOW + HOUR
        entries[key] = state.Entry(expiry, layout.Kind.BLOB)
    tree.state_path.write_bytes(state.format(entries))
    return contents


@pytest.mark.parametrize(
    ("size", "left"), [(1, "ab"), (1000, "ab"), (1001, "b"), (2000, "b"), (2001, ""), (9999, "")]
)
def test_to_free_takes_expired_then_oldest_and_stops_when_it_is_enough(
    tree: Tree, size: int, left: str
) -> None:
    three(tree)
    done = purged(tree, to_free=size)
    found = {path.read_bytes()[:1] for path in tree.blobs.rglob("data")}
    assert found == {bytes([letter]) for letter in left.encode()}
    assert done["bytes"] == 1000 * (3 - len(left))
    assert bool(done["notes"]) is (size > 3000)
    assert len(tree.state()) == len(left)


def test_to_free_counts_a_shared_layer_once_and_what_nothing_reaches_first(tree: Tree) -> None:
    contents = three(tree)
    tree.layer("c/d", contents[0])
    tree.data(b"an orphan of some bytes")
    assert purged(tree, to_free=23)["bytes"] == 23
    assert len(list(tree.blobs.rglob("data"))) == 3
    purged(tree, to_free=2000)
    assert [path.read_bytes() for path in tree.blobs.rglob("data")] in (
        [contents[0]],
        [contents[1]],
    )


# --- never by half ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_killed_after_any_step_the_next_run_ends_the_same(
    tmp_path: Path, wanted: dict[str, object]
) -> None:
    undisturbed = grown(Tree(tmp_path / "undisturbed"))
    purged(undisturbed, **wanted)
    for survive in range(500):
        tree = grown(Tree(tmp_path / str(survive)))
        states = {tree.state_path.read_bytes(), undisturbed.state_path.read_bytes()}
        store = KillingStore(tree.root, survive)
        try:
            purge.offline(store, FakeClock(NOW), SILENT, Wanted(**wanted))  # type: ignore[arg-type]
        except Killed:
            assert tree.state_path.read_bytes() in states
            purged(tree, **wanted)
            finished = False
        else:
            finished = True
        assert tree.files() == undisturbed.files()
        assert everything(tree) == everything(undisturbed)
        if finished:
            assert survive > 10
            return
    pytest.fail("purge never finished")


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("broken", ["other/app/_layers", "v2/blobs/sha256", "multi"])
def test_what_cannot_be_read_aborts_with_everything_as_it_was(
    tree: Tree, wanted: dict[str, object], broken: str
) -> None:
    grown(tree)
    before = tree.files()
    store = UnreadableStore(tree.root)
    store.broken = broken
    for run in (purge.offline, purge.online):
        with pytest.raises(StorageUnreadable):
            run(store, FakeClock(NOW), SILENT, Wanted(**wanted))  # type: ignore[arg-type]
    assert tree.files() == before


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_a_second_run_and_a_dry_run_change_nothing(tree: Tree, wanted: dict[str, object]) -> None:
    grown(tree)
    before = tree.files()
    given = Wanted(**wanted)  # type: ignore[arg-type]
    for run in (purge.offline, purge.online):
        run(tree.store, FakeClock(NOW), SILENT, given, dry_run=True)
        assert tree.files() == before
    assert purged(tree, **wanted)["changed"] is True
    after = tree.files()
    assert purged(tree, **wanted)["changed"] is False
    assert tree.files() == after


# --- online ----------------------------------------------------------------------------------------


def test_online_the_state_is_left_alone_and_only_files_go(tree: Tree) -> None:
    grown(tree)
    before, directories = tree.state_path.read_bytes(), set(everything(tree)) - set(tree.files())
    clock = FakeClock(NOW)
    purge.online(tree.store, clock, SILENT, Wanted(repository="library/app"))
    assert tree.state_path.read_bytes() == before
    assert directories <= set(everything(tree))
    assert has(tree, b"base" * 100)
    assert not has(tree, b"one" * 50)
    assert clock.time - NOW >= 60 * SECOND


def test_online_data_that_is_linked_again_meanwhile_stays(tree: Tree) -> None:
    grown(tree)

    class Pulled(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if seconds >= 60:
                image(tree, "library/app", "1", b"base" * 100, b"one" * 50)

    purge.online(tree.store, Pulled(NOW), SILENT, Wanted(repository="library/app"))
    assert has(tree, b"one" * 50)
    assert not has(tree, b"two" * 30)


# --- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "tag"),
    [
        ("nginx", ("nginx", "library/nginx"), "latest"),
        ("a/b:1", ("a/b",), "1"),
        ("docker.io/nginx:1", ("docker.io/nginx", "nginx", "library/nginx"), "1"),
        ("localhost:5000/a/b", ("a/b",), "latest"),
    ],
)
def test_images_are_named_as_people_do(text: str, names: tuple[str, ...], tag: str) -> None:
    found = purge.reference(text)
    assert (found.repositories, found.tag) == (names, tag)


@pytest.mark.parametrize("text", ["", "UP/per:", "a@sha256:12", "a b", "a:"])
def test_what_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        purge.reference(text)


def test_sizes_are_kubernetes_quantities() -> None:
    assert [purge.quantity(text) for text in ["20Gi", "5M", "7"]] == [20 << 30, 5_000_000, 7]
    for text in ["", "0", "-1", "1.5Gi", "Gi", "1GiB"]:
        with pytest.raises(argparse.ArgumentTypeError):
            purge.quantity(text)


def test_the_command_line_asks_for_exactly_one_thing(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(tree)
    tree.age()
    where = ["purge", "--storage", str(tree.root)]
    for wrong in [[], ["--all", "--to-free", "1Gi"], ["--repository", "NO"], ["--image", "a:"]]:
        with pytest.raises(SystemExit) as ended:
            cli.main([*where, *wrong])
        assert ended.value.code == 2
    assert cli.main([*where, "--repository", "library/app", "--dry-run"]) == 0
    assert "would remove" in capsys.readouterr().out
    assert cli.main([*where, "--repository", "library/app", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["plan", "done"]
    assert lines[1]["removed"]["purged"]["count"] == lines[0]["remove"]["purged"]["count"]
