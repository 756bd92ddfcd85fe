"""The literal case of distribution issue 4249, on real registries of both series, control first.

Contributes to what is under test: `migrate`, `prepare`, `keep` as they run in a member's pod, and the stock scheduler
that acts on what they write. What lies on a storage is counted here by file names alone, not by the code under test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pullthrough.storage import layout, migrate, prepare
from pullthrough.storage.keeper import watch
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import FileStore, SystemClock
from tests import images
from tests.registry.hammer import files_of
from tests.registry.servers import (
    CAST,
    Keep,
    Registry,
    Series,
    configure,
    eventually,
    pull_all,
)

pytestmark = pytest.mark.registry

HOST = "upstream.test"
TTL = 8
"""Seconds. Series 2.8 has its ttl built in, but acts on the entries that we write."""
HOUR = 3600
ARTIFACTS = 22
"""15 links of blobs and 7 of manifests: what a pull of the whole cast makes, once per repository."""
MakeCache = Callable[..., Registry]
StartKeeper = Callable[..., Keep]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What lies on a storage, the canary aside."""

    data: int
    bytes: int
    links: int
    revisions: int
    tags: int


def count(storage: Path) -> Counted:
    files = [p for p in files_of(storage) if "pullthrough.dev/canary" not in p]
    links = [p for p in files if p.endswith("/link")]
    canaries = {
        p.rsplit("/", 2)[1]
        for p in files_of(storage / layout.REPOSITORIES / "pullthrough.dev/canary")
    }
    blobs = (p for p in files if p.endswith("/data") and "/blobs/" in p)
    data = [p for p in blobs if p.rsplit("/", 2)[1] not in canaries]
    return Counted(
        data=len(data),
        bytes=sum(_size(p) for p in data),
        links=sum("/_layers/" in p for p in links),
        revisions=sum("/_manifests/revisions/" in p for p in links),
        tags=sum("/_manifests/tags/" in p for p in links),
    )


NOTHING = Counted(data=0, bytes=0, links=0, revisions=0, tags=0)


def test_everything_cached_before_the_switch_is_gone_by_switch_and_ttl(
    series: Series, upstream: Registry, make_cache: MakeCache, keep: StartKeeper, tmp_path: Path
) -> None:
    cache = filled_with_gc_off(series, upstream, make_cache)
    before = count(cache.storage)
    assert (before.links, before.revisions) == (15, 7), before
    assert before.data == len({d for image in CAST.values() for d in image.digests})

    control = tmp_path / "control-storage"
    shutil.copytree(cache.storage, control)
    plain = make_cache("control", ttl=f"{TTL}s", storage=control)
    fill(plain)
    plain_switched = time.time()

    switched = time.time()
    told = job(cache)
    assert told["artifacts"] == before.links + before.revisions
    job_wrote = (cache.storage / layout.next_state_path("job-1")).read_bytes()
    cache.stop()
    start_of(series, "Enabled", cache, template="on", migration="job-1")
    assert cache.state.read_bytes() == job_wrote, "no pull came in between"
    configure(cache, series, upstream, f"{TTL}s")
    keeper = keep(cache, series, upstream.url, ttl=f"{TTL}s", template="on")
    cache.start()

    time.sleep(max(0.0, switched + TTL + 0.5 - time.time()))
    by_then = count(cache.storage)
    assert (by_then.links, by_then.revisions) == (0, 0), "no artifact outlives switch + ttl"
    eventually(
        "the payloads to be swept",
        lambda: count(cache.storage) == NOTHING,
        within=15,
        saw=lambda: count(cache.storage),
    )
    swept_after = time.time() - switched - TTL
    report = keeper.report()
    assert report["canary"] == "Passed", report
    time.sleep(max(0.0, plain_switched + TTL + 2 - time.time()))
    leaked = count(control)
    assert (leaked.data, leaked.bytes) == (before.data, before.bytes), "the control must leak"

    fill(cache)
    after = count(cache.storage)
    assert after.links == before.links and after.revisions == before.revisions
    print(
        f"{series.version}: before {before}; ours empty {swept_after:.1f} s after switch + ttl;"
        f" the control kept {leaked.bytes} bytes"
    )


def test_reseeded_keys_and_types_are_the_registrys_own(
    series: Series, upstream: Registry, make_cache: MakeCache
) -> None:
    own = make_cache("own", ttl=f"{HOUR}s")
    pull_all(own)
    eventually(
        "the registry to save",
        lambda: len(types(own.state)) == ARTIFACTS,
        saw=lambda: types(own.state),
    )
    cache = filled_with_gc_off(series, upstream, make_cache)
    job(cache, ttl=HOUR)
    ours = types(cache.storage / layout.next_state_path("job-1"))
    canaries = [key for key in ours if key.startswith("pullthrough.dev/canary@")]
    assert len(canaries) == 1
    del ours[canaries[0]]
    assert ours == types(own.state)


def test_the_canary_fails_where_the_environment_turns_deletion_off(
    series: Series, upstream: Registry, make_cache: MakeCache, keep: StartKeeper
) -> None:
    cache = make_cache("cache", ttl=f"{HOUR}s", start=False)
    start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    keeper = keep(cache, series, upstream.url, ttl="1h", template="on")
    cache.environment = {"REGISTRY_STORAGE_DELETE_ENABLED": "false"}
    cache.start()
    digest = json.loads((cache.storage / "pullthrough/start.json").read_text())["canary"]
    eventually("its entry to be dropped", lambda: types(cache.state) == {}, within=20)
    assert watch.canary_lies_there(FileStore(cache.storage), digest)
    if series.name == "v2":
        # A minute for one series is enough.
        assert keeper.report()["canary"] == "Pending"
        return
    time.sleep(50)
    eventually("the verdict", lambda: keeper.report()["canary"] != "Pending", within=20)
    assert keeper.report()["canary"] == "Failed"


def test_what_a_killed_registry_forgot_is_covered_by_the_next_start(
    series: Series, upstream: Registry, make_cache: MakeCache
) -> None:
    cache = make_cache("cache", ttl=f"{HOUR}s", start=False)
    start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    cache.start()
    images.pull(cache.url, "library/alpine", "3")
    eventually("the registry to save", lambda: len(types(cache.state)) >= 4)
    images.pull(cache.url, "library/python", "3.13")
    eventually(
        "both images to be linked",
        lambda: (c := count(cache.storage)).links + c.revisions == 8,
        saw=lambda: count(cache.storage),
    )
    cache.kill()
    missing = {
        f"library/python@{digest}" for digest in CAST["library/python", "3.13"].digests
    } - types(cache.state).keys()
    assert missing, "the kill came before the registry's 5 s tick"
    start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    assert missing <= types(cache.state).keys()
    cache.start()
    fill(cache)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0755", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail("root cannot mount a tmpfs here")
        pytest.skip("mounting a small file system needs root")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_hits_are_served_after_a_start_on_a_full_disk(
    series: Series, upstream: Registry, make_cache: MakeCache, small_disk: Path
) -> None:
    cache = make_cache("cache", ttl=f"{HOUR}s", storage=small_disk, start=False)
    start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    cache.start()
    fill(cache)
    cache.kill()
    cache.state.unlink(missing_ok=True)
    fill_up(small_disk)
    told = start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    assert told["uncovered"] or len(types(cache.state)) >= ARTIFACTS, told
    cache.start()
    for (repository, _), image in CAST.items():
        images.pull(cache.url, repository, image.digest)


def test_hits_are_served_after_a_start_with_an_unreadable_link(
    series: Series, upstream: Registry, make_cache: MakeCache
) -> None:
    cache = make_cache("cache", ttl=f"{HOUR}s", start=False)
    start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    cache.start()
    fill(cache)
    cache.stop()
    cache.state.unlink(missing_ok=True)
    link = next(
        (cache.storage / "docker/registry/v2/repositories/a/b/_layers/sha256").glob("*/link")
    )
    link.unlink()
    link.mkdir()  # root reads every file, but nobody reads a directory as one
    told = start_of(series, "Enabled", cache, template="on", ttl=HOUR)
    assert told["uncovered"] == 1 and told["problem"], told
    assert len([key for key in types(cache.state) if "canary" not in key]) == ARTIFACTS - 1
    cache.start()
    for repository, tag in CAST:
        if repository != "a/b":
            images.pull(cache.url, repository, tag)


# -- what a member's pod does ----------------------------------------------------------------------------------------------


def start_of(
    series: Series,
    gc: str,
    cache: Registry,
    *,
    template: str,
    ttl: float = TTL,
    migration: str | None = None,
) -> dict[str, Any]:
    """The init container, with a ttl that its command line would refuse as too short."""
    options = prepare.Options(
        series=series.name,
        gc=gc,
        ttl=int(ttl * SECOND),
        host=HOST,
        template=template,
        migration=migration,
    )
    return dict(prepare.prepare(FileStore(cache.storage), SystemClock(), options))


def fill_up(disk: Path) -> None:
    """To the last byte."""
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


def job(cache: Registry, *, ttl: float = TTL) -> dict[str, Any]:
    """The migration Job, beside the serving registry."""
    options = migrate.Options(ttl=int(ttl * SECOND), host=HOST, job="job-1")
    return dict(migrate.migrate(FileStore(cache.storage), SystemClock(), options))


def filled_with_gc_off(series: Series, upstream: Registry, make_cache: MakeCache) -> Registry:
    """A running cache full of what nothing schedules."""
    cache = make_cache("cache", start=False)
    start_of(series, "Disabled", cache, template="off")
    cache.start()
    fill(cache)
    if series.name == "v2":
        # 2.8 schedules for 168h even with deletion off, and drops each entry when its time comes.
        eventually("the registry to save", lambda: len(types(cache.state)) == ARTIFACTS)
        cache.stop()
        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        aged = {key: {**entry, "ExpiryData": soon} for key, entry in _entries(cache.state).items()}
        cache.state.write_text(json.dumps(aged))
        cache.start()
        eventually("2.8 to drop every entry", lambda: types(cache.state) == {})
        assert "operation unsupported" in cache.tail()
    else:
        assert not cache.state.exists()
    return cache


def fill(cache: Registry) -> None:
    """Pull everything, and wait until the last bytes are linked: a fill ends after its answer."""
    pull_all(cache)
    eventually(
        "every fill to end",
        lambda: (c := count(cache.storage)).links + c.revisions == ARTIFACTS,
        saw=lambda: count(cache.storage),
    )


def types(path: Path) -> dict[str, int]:
    return {key: entry["EntryType"] for key, entry in _entries(path).items()}


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Of a state file that a registry may be writing: torn reads are no entries yet."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {"?": {"EntryType": -1}}
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
