"""Every storage program that writes, on small storages in the situations that it is for.

The table for tests that interrupt or damage: one line here, and a program is killed, refused and
starved at each of its writes. Times are those of a clock that stands still, so that a run and its
repetition can be compared byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

from pullthrough.storage import (
    canary,
    layout,
    migrate,
    prepare,
    program,
    purge,
    reseed,
    state,
    sweep,
)
from pullthrough.storage.keeper import program as keep
from pullthrough.storage.keeper import settings
from pullthrough.storage.store import Store
from tests.storage_trees import HOUR, SECOND, FakeClock, Tree

NOW = 1_900_000_000 * SECOND
TTL = 24 * HOUR
JOB = "0c9e1b9a-0000-4000-8000-000000000001"
OTHER = 65534
"""Owner of a storage whose registry is not root's."""

ON = prepare.Options(series="v3", gc="Enabled", ttl=TTL, host="docker.io", template="t1")
OFF = changed(ON, gc="Disabled", template="t0")
MIGRATED = changed(ON, migration=JOB)
JOB_OPTIONS = migrate.Options(ttl=TTL, host="docker.io", job=JOB)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A program in a situation."""

    arrange: Callable[[Tree], None]
    run: Callable[[Store, FakeClock], object]
    removes_expired: bool = False
    """Whether it is there to remove artifacts, too."""


def plain(tree: Tree) -> None:
    """A few artifacts, marked; no state."""
    tree.mark()
    tree.layer("a/b", b"a layer")
    tree.layer("library/alpine", b"a layer")
    tree.manifest("library/alpine", b'{"schemaVersion": 2}', "latest")


def covered(tree: Tree) -> None:
    """The same, with a state that covers all, of an earlier start."""
    plain(tree)
    prepare.prepare(tree.store, FakeClock(NOW), changed(ON, template="t0"))


def retired(tree: Tree) -> None:
    plain(tree)
    prepare.prepare(tree.store, FakeClock(NOW), OFF)


def malformed(tree: Tree) -> None:
    covered(tree)
    tree.state_path.write_bytes(b'{"torn')


def past(tree: Tree) -> None:
    """Stopped for longer than the ttl."""
    plain(tree)
    prepare.prepare(tree.store, FakeClock(NOW - 3 * TTL), changed(ON, template="t0"))


def after_the_job(tree: Tree) -> None:
    """The migration Job has run, and something was pulled since."""
    retired(tree)
    migrate.migrate(tree.store, FakeClock(NOW), JOB_OPTIONS)
    tree.layer("a/late", b"pulled after the Job")


def untidy(tree: Tree) -> None:
    """One of each thing that is to go."""
    covered(tree)
    tree.link("x/emptied", "_layers", "sha256:" + "0" * 64).unlink()
    tree.link("x/dangling", "_layers", "sha256:" + "1" * 64)
    tree.link("x/alias", "_layers", "sha512:" + "a" * 128, tree.data(b"by sha512"))
    tree.link("x/bad", "_layers", tree.data(b"zero"), "")
    leftover = tree.link("x/leftover", "_layers", "sha256:" + "2" * 64)
    leftover.rename(leftover.with_name("link.0190.tmp"))
    tree.data(b'{"schemaVersion": 2, "of": "an expired manifest"}')
    tag = tree.repositories / "a/b/_manifests/tags/dead/current/link"
    tag.parent.mkdir(parents=True)
    tag.write_text("sha256:" + "3" * 64)
    upload = tree.repositories / "a/b/_uploads/0190"
    upload.mkdir(parents=True)
    (upload / "data").write_bytes(b"half a layer")
    (tree.root / "scheduler-state.next.old.json").write_bytes(b"{}")
    (tree.root / "scheduler-state.json.0190.tmp").write_bytes(b"{")


def partly_covered(tree: Tree) -> None:
    """An old artifact that no entry covers, among others that are."""
    covered(tree)
    key = tree.layer("a/old", b"filled while collection was off")
    entries = state.parse(tree.state_path.read_bytes()).entries
    assert key not in entries
    tree.state_path.write_bytes(state.format(entries))


def given_away(arrange: Callable[[Tree], None]) -> Callable[[Tree], None]:
    """The same storage, owned by a registry that is not root."""

    def arranged(tree: Tree) -> None:
        arrange(tree)
        if os.geteuid() == 0:
            for path in [tree.root, *tree.root.rglob("*")]:
                os.lchown(path, OTHER, OTHER)

    return arranged


def _prepare(options: prepare.Options) -> Callable[[Store, FakeClock], object]:
    return lambda store, clock: prepare.prepare(store, clock, options)


def _reseed(store: Store, clock: FakeClock) -> object:
    return reseed.reseed(store, clock, ttl=TTL, spread=None, dry_run=False)


def _migrate(store: Store, clock: FakeClock) -> object:
    return migrate.migrate(store, clock, JOB_OPTIONS)


def keeper(store: Store, clock: FakeClock) -> keep.Keeper:
    words = "--storage x --series v3 --ttl 24h --upstream-url http://127.0.0.1:9 --rate 1000000"
    return keep.Keeper(settings.parse(words.split()), store, clock, keep.Board())


def _keep(store: Store, clock: FakeClock) -> object:
    """Sweeps, until there is nothing left that a sweep removes."""
    looking = keeper(store, clock)
    for _ in range(6):
        looking.sweep()
        clock.time += 30 * HOUR
    return None


def _repair(store: Store, clock: FakeClock) -> object:
    """Looks at a torn state behind a closed port."""
    looking = keeper(store, clock)
    for _ in range(4):
        looking.tick(port_was_open=False, opened=None)
        clock.time += 100 * SECOND
    for _ in range(3):
        looking.sweep()
        clock.time += 30 * HOUR
    return None


def _sweep(store: Store, clock: FakeClock) -> object:
    return sweep.offline(store, clock, program.Sayer("sweep", as_json=True))


def _purge(store: Store, clock: FakeClock) -> object:
    return purge.offline(
        store,
        clock,
        program.Sayer("purge", as_json=True),
        purge.Wanted(repository="library/alpine"),
    )


CASES: dict[str, Case] = {
    "sweep": Case(arrange=untidy, run=_sweep),
    "purge": Case(arrange=covered, run=_purge, removes_expired=True),
    "prepare, nothing there": Case(arrange=lambda tree: None, run=_prepare(ON)),
    "prepare, first start": Case(arrange=plain, run=_prepare(ON)),
    "prepare, new template": Case(arrange=covered, run=_prepare(ON)),
    "prepare, other owner": Case(arrange=given_away(plain), run=_prepare(ON)),
    "prepare, after the Job": Case(arrange=after_the_job, run=_prepare(MIGRATED)),
    "prepare, malformed": Case(arrange=malformed, run=_prepare(ON)),
    "prepare, past": Case(arrange=past, run=_prepare(ON)),
    "prepare, other ttl": Case(arrange=covered, run=_prepare(changed(ON, ttl=2 * HOUR))),
    "prepare, untidy": Case(arrange=untidy, run=_prepare(ON)),
    "prepare, off": Case(arrange=covered, run=_prepare(OFF)),
    "prepare, off v2": Case(arrange=covered, run=_prepare(changed(OFF, series="v2"))),
    "migrate": Case(arrange=retired, run=_migrate),
    "reseed": Case(arrange=plain, run=_reseed),
    "reseed, covered": Case(arrange=past, run=_reseed),
    "reseed, malformed": Case(arrange=malformed, run=_reseed),
    "keep": Case(arrange=untidy, run=_keep),
    "keep, backstop": Case(arrange=partly_covered, run=_keep, removes_expired=True),
    "keep, torn state": Case(arrange=malformed, run=_repair),
}


def reachable(tree: Tree) -> dict[str, bytes]:
    """What a pull can be served from: good links whose data is there, and those data, by path, also
    where a registry follows symbolic links to them. Aliases and canaries are not among them."""
    found: dict[str, bytes] = {}
    for directory, _, files in os.walk(tree.root, followlinks=True):
        path = Path(directory) / "link"
        if "link" not in files:
            continue
        where = str(path.relative_to(tree.root))
        artifact = layout.parse_link_path(where)
        if artifact is None or artifact.repository == canary.REPOSITORY:
            continue
        data = tree.root / layout.blob_path(artifact.digest)
        if not path.is_file() or not data.is_file() or not data.stat().st_size:
            continue
        if path.read_text() == artifact.digest:
            found[where] = path.read_bytes()
            found[str(data.relative_to(tree.root))] = data.read_bytes()
    return found


def arranged(case: Case, root: Path) -> Tree:
    """The case's storage. Its files are older than the clock, as a registry's are."""
    tree = Tree(root)
    case.arrange(tree)
    return tree


def state_of(tree: Tree) -> bytes | None:
    """The state file's bytes, None if there is none."""
    return tree.state_path.read_bytes() if tree.state_path.exists() else None


def is_whole(content: bytes | None) -> bool:
    """Whether a registry could start on it; json, not the code under test, decides."""
    return content is None or isinstance(json.loads(content), dict)
