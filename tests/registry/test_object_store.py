"""The literal case of distribution issue 4249 over S3, and the store itself, on a real S3 server.

Registries of both series write through their own s3 driver. Contributes to what is under test: `reseed`, `audit` and
ObjectStore. What lies in the bucket is counted in the server's folder, by names alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pullthrough.storage import inventory, layout, migrate, objects, prepare, survey
from pullthrough.storage.errors import StorageChanged, StorageNotWritable, StorageUnreadable
from pullthrough.storage.objects import ObjectStore
from pullthrough.storage.opening import open_store
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import SystemClock
from tests import images
from tests.registry import s3 as servers_s3
from tests.registry.conftest import program
from tests.registry.s3 import BUCKET, S3, SlowWay
from tests.registry.servers import (
    CAST,
    ROOT,
    Keep,
    Registry,
    Series,
    answers,
    eventually,
    free_port,
    pull_all,
)

pytestmark = pytest.mark.registry

PREFIX = "registry/docker-io"
STORAGE = f"s3://{BUCKET}/{PREFIX}"
ARTIFACTS = 22
"""15 links of blobs and 7 of manifests: what a pull of the whole cast makes, once per repository."""
DIGESTS = {digest for image in CAST.values() for digest in image.digests}
SHARED = images.layer("shared", 300_000).digest.removeprefix("sha256:")
"""A layer that three of the repositories have."""
MakeRegistry = Callable[..., Registry]


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    server = S3(
        binary=program("versitygw"),
        folder=tmp_path / "s3",
        log=tmp_path / "s3.log",
        port=free_port(),
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


@pytest.fixture
def make_cache(
    make_registry: MakeRegistry, series: Series, s3: S3, upstream: Registry
) -> Callable[..., Registry]:
    def make(name: str, *, prefix: str = PREFIX, ttl: str | None = None) -> Registry:
        cache = make_registry(series.binary, name)
        servers_s3.configure(cache, series, s3, upstream, prefix=prefix, ttl=ttl)
        cache.start()
        return cache

    return make


def run(s3: S3, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pullthrough", *argv],
        env={**os.environ, **s3.environment, "PYTHONPATH": str(ROOT / "operator"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def links(s3: S3, prefix: str = PREFIX) -> set[str]:
    """Keys of links that can expire."""
    found = s3.keys(f"{prefix}/{layout.REPOSITORIES}")
    return {key for key in found if "/_layers/" in key or "/_manifests/revisions/" in key}


def served(s3: S3, prefix: str = PREFIX) -> set[str]:
    """Links that lead to data."""
    digits = {digest.removeprefix("sha256:") for digest in data(s3, prefix)}
    return {link for link in links(s3, prefix) if link.split("/")[-2] in digits}


def data(s3: S3, prefix: str = PREFIX) -> set[str]:
    """Digests of what lies in blobs."""
    return {f"sha256:{key.split('/')[2]}" for key in s3.keys(f"{prefix}/{layout.BLOBS}")}


def state_of(s3: S3, prefix: str = PREFIX) -> dict[str, Any]:
    path = s3.bucket / prefix / layout.STATE
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


def types(state: dict[str, Any]) -> dict[str, int]:
    return {key: entry["EntryType"] for key, entry in state.items()}


def filled_with_gc_off(
    cache: Registry, series: Series, s3: S3, upstream: Registry, prefix: str = PREFIX
) -> None:
    """A stopped cache full of what nothing schedules."""
    servers_s3.configure(cache, series, s3, upstream, prefix=prefix, ttl=None)
    cache.start()
    pull_all(cache)
    eventually("every fill to end", lambda: len(links(s3, prefix)) == ARTIFACTS)
    if series.name == "v2":
        # 2.8 schedules for 168h even with deletion off, and drops each entry when its time comes.
        eventually("the registry to save", lambda: len(state_of(s3, prefix)) == ARTIFACTS)
        cache.kill()
        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        aged = {key: {**entry, "ExpiryData": soon} for key, entry in state_of(s3, prefix).items()}
        (s3.bucket / prefix / layout.STATE).write_text(json.dumps(aged))
        cache.start()
        eventually("2.8 to drop every entry", lambda: state_of(s3, prefix) == {})
    cache.stop()
    assert state_of(s3, prefix) == {}
    assert data(s3, prefix) == DIGESTS


def test_everything_filled_with_gc_off_expires_once_reseeded_over_s3(
    series: Series, s3: S3, upstream: Registry, make_registry: MakeRegistry
) -> None:
    cache, control = (make_registry(series.binary, name) for name in ("cache", "control"))
    filled_with_gc_off(cache, series, s3, upstream)
    filled_with_gc_off(control, series, s3, upstream, "control")

    planned = run(s3, "reseed", "--storage", STORAGE, "--ttl", "1m", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    told = json.loads(planned.stdout.splitlines()[-1])
    assert told["entries"] == ARTIFACTS
    assert told["requests"]["list"] > 0
    assert set(told["requests"]) <= {"list", "get", "head"}, "a dry run writes nothing"
    assert state_of(s3) == {}
    done = run(s3, "reseed", "--storage", STORAGE, "--ttl", "1m", "--spread", "55s")
    assert done.returncode == 0, done.stderr
    reseeded = time.time()
    assert len(state_of(s3)) == ARTIFACTS
    audited = run(s3, "audit", "--storage", STORAGE, "--json")
    assert json.loads(audited.stdout.splitlines()[-1])["covered"] == ARTIFACTS

    for registry, prefix in ((cache, PREFIX), (control, "control")):
        servers_s3.configure(registry, series, s3, upstream, prefix=prefix, ttl="1m")
        registry.start()
    eventually(
        "everything to go",
        lambda: not served(s3),
        within=reseeded + 65 - time.time(),
        saw=lambda: f"{served(s3)}\n{cache.tail()}",
    )
    print(f"{series.version}: nothing left {time.time() - reseeded:.1f} s after reseeding")
    eventually("the registry to save", lambda: state_of(s3) == {}, saw=lambda: state_of(s3))
    payloads = {manifest.digest for image in CAST.values() for manifest in image.manifests}
    # What no registry ever removes, here as on a disk: the sweep's.
    assert data(s3) <= payloads
    assert all(SHARED in link for link in links(s3)), (
        "links of what another repository's took along"
    )
    assert len(served(s3, "control")) == ARTIFACTS, "the control must leak"
    assert data(s3, "control") == DIGESTS

    pull_all(cache)
    eventually("every fill to end", lambda: len(served(s3)) == ARTIFACTS)


def test_reseeded_keys_types_and_format_are_the_registrys_own(
    series: Series, s3: S3, make_cache: Callable[..., Registry]
) -> None:
    own = make_cache("own", ttl="1h", prefix="own")
    pull_all(own)
    eventually(
        "the registry to save",
        lambda: len(state_of(s3, "own")) == ARTIFACTS,
        within=40,
        saw=lambda: f"{state_of(s3, 'own')}\n{own.tail()}",
    )
    own.stop()
    cache = make_cache("cache")
    pull_all(cache)
    eventually("every fill to end", lambda: len(links(s3)) == ARTIFACTS)
    cache.stop()
    assert run(s3, "reseed", "--storage", STORAGE, "--ttl", "1h").returncode == 0
    theirs, ours = state_of(s3, "own"), state_of(s3)
    assert types(ours) == types(theirs)
    assert {tuple(entry) for entry in ours.values()} == {tuple(entry) for entry in theirs.values()}
    assert all(key == entry["Key"] for key, entry in ours.items())
    assert s3.keys(f"{PREFIX}/docker") == s3.keys("own/docker"), "the same keys for the same pulls"
    again = (s3.bucket / PREFIX / layout.STATE).read_bytes()
    assert run(s3, "reseed", "--storage", STORAGE, "--ttl", "1h").returncode == 0
    assert (s3.bucket / PREFIX / layout.STATE).read_bytes() == again
    fresh = make_cache("fresh", ttl="1h")
    eventually("it to load", lambda: "scheduler" in fresh.tail())
    assert "panic" not in fresh.tail()


def test_a_members_pod_on_s3_migrates_installs_and_sweeps(
    series: Series, s3: S3, upstream: Registry, make_registry: MakeRegistry
) -> None:
    """The operator's way, with a ttl that the command lines would refuse as too short."""
    ttl = 8
    cache = make_registry(series.binary, "cache")
    start_of(series, "Disabled", "off", ttl)
    filled_with_gc_off(cache, series, s3, upstream)
    cache.start()
    switched = time.time()
    options = migrate.Options(ttl=ttl * SECOND, host="upstream.test", job="job-1")
    told = migrate.migrate(open_store(STORAGE), SystemClock(), options)
    assert told["artifacts"] == ARTIFACTS
    next_state = s3.bucket / PREFIX / layout.next_state_path("job-1")
    job_wrote = next_state.read_bytes()
    cache.stop()
    start_of(series, "Enabled", "on", ttl, migration="job-1")
    assert (s3.bucket / PREFIX / layout.STATE).read_bytes() == job_wrote
    assert not next_state.exists()
    servers_s3.configure(cache, series, s3, upstream, prefix=PREFIX, ttl=f"{ttl}s")
    with keeper(s3, series, upstream, cache, ttl=ttl) as report:
        cache.start()
        eventually("every link to go", lambda: not links(s3), within=switched + 20 - time.time())
        eventually("the payloads to be swept", lambda: not data(s3), saw=lambda: data(s3))
        eventually("the canary", lambda: report()["canary"] == "Passed", saw=report)
    pull_all(cache)


def test_what_an_audit_asks_for_is_what_it_says_that_it_asked_for(
    s3: S3, upstream: Registry, make_registry: MakeRegistry
) -> None:
    cache = make_registry(program("registry-3.1.2"), "cache")
    v3 = Series(name="v3", version="3.1.2", binary=cache.binary)
    filled_with_gc_off(cache, v3, s3, upstream)
    before = s3.asked()
    store = ObjectStore.open(STORAGE)
    assert everything_in(store).blobs == len(DIGESTS)
    assert store.requests == {"list": 3}, "the root, blobs, repositories"
    asked = eventually_asked(s3, before, 3)
    assert asked == {"s3_ListObjectsV2": 3}, "no link and no tag was read"


def test_only_links_in_doubt_are_read(s3: S3) -> None:
    sha256, sha512 = "a" * 64, "b" * 128
    layers = f"{layout.REPOSITORIES}/a/b/_layers"
    tags = f"{layout.REPOSITORIES}/a/b/_manifests/tags"
    write(s3, f"{layers}/sha256/{sha256}/link", f"sha256:{sha256}")
    write(s3, f"{layers}/sha256/{'c' * 64}/link", "")
    write(s3, f"{layers}/sha256/{'d' * 64}/link", "garbage")
    write(s3, f"{layers}/sha512/{sha512}/link", f"sha256:{sha256}")
    for tag, digests in {"one": "e", "two": "ef"}.items():
        write(s3, f"{tags}/{tag}/current/link", f"sha256:{'e' * 64}")
        for digit in digests:
            write(s3, f"{tags}/{tag}/index/sha256/{digit * 64}/link", f"sha256:{digit * 64}")
    store = ObjectStore.open(STORAGE)
    names = [sha256, "c" * 64, "d" * 64, "9" * 64]
    assert dict(store.read_each(f"{layers}/sha256", names, "link", 136)) == {
        sha256: f"sha256:{sha256}".encode(),
        "c" * 64: b"",
        "d" * 64: b"garbage",
        "9" * 64: None,
    }
    assert store.requests["get"] == 1, "the garbage"
    alias = dict(store.read_each(f"{layers}/sha512", [sha512], "link", 136))
    assert alias == {sha512: f"sha256:{sha256}".encode()}
    assert store.requests["get"] == 2, "and the alias"
    current = dict(store.read_each(tags, ["one", "two"], "current/link", 136))
    assert current == dict.fromkeys(["one", "two"], f"sha256:{'e' * 64}".encode())
    assert store.requests["get"] == 3, "and the tag that moved"


def test_nothing_is_a_storage_that_may_not_be_listed_or_is_not_there(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(s3, layout.STATE, "{}")
    with pytest.raises(StorageUnreadable, match=r"NoSuchBucket.*check the bucket"):
        open_store("s3://other/registry")
    with monkeypatch.context() as changed:
        changed.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StorageUnreadable, match=r"SignatureDoesNotMatch.*credentials"):
            open_store(STORAGE)
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StorageUnreadable, match="AWS_ENDPOINT_URL"):
            open_store(STORAGE)
    with monkeypatch.context() as changed:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            changed.delenv(name)
        # Where an instance's role would be found.
        changed.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StorageUnreadable, match="credentials"):
            open_store(STORAGE)
    store = open_store(STORAGE)
    s3.stop()
    with pytest.raises(StorageUnreadable):
        store.read(layout.STATE)


def test_who_may_read_but_not_list_sees_an_error_and_not_an_empty_bucket(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(s3, layout.STATE, "{}")
    anybody_may(s3, "s3:GetObject")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert ObjectStore("s3", BUCKET, PREFIX).read(layout.STATE) == b"{}"
    for argv in (["audit"], ["reseed", "--ttl", "1h"]):
        done = run(s3, *argv, "--storage", STORAGE)
        assert done.returncode != 0
        assert "AccessDenied" in done.stderr and "may list" in done.stderr, done
    with pytest.raises(StorageUnreadable, match="AccessDenied"):
        ObjectStore("s3", BUCKET, PREFIX).names("docker")


def test_who_may_read_and_list_but_not_write_changes_nothing(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(STORAGE).replace(layout.STATE, b"{}")
    anybody_may(s3, "s3:GetObject", "s3:ListBucket")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    store = open_store(STORAGE)
    with pytest.raises(StorageNotWritable, match="AccessDenied"):
        store.replace(layout.STATE, b'{"a":1}')
    with pytest.raises(StorageNotWritable, match="AccessDenied"):
        store.unlink(layout.STATE)
    assert state_of(s3) == {} and store.names("") == [layout.STATE]


def test_a_state_that_somebody_else_wrote_meanwhile_is_left(s3: S3) -> None:
    ours, theirs = open_store(STORAGE), open_store(STORAGE)
    assert ours.read(layout.STATE) is None
    theirs.replace(layout.STATE, b"{}")
    with pytest.raises(StorageChanged, match="it was not there, and now has 2 bytes of 20"):
        ours.replace(layout.STATE, b'{"ours":1}')
    assert ours.read(layout.STATE) == b"{}"
    theirs.replace(layout.STATE, b'{"b":2}')
    for _ in range(2):
        with pytest.raises(StorageChanged, match=r"had the etag .* and now has 7 bytes"):
            ours.replace(layout.STATE, b'{"ours":2}')
    assert theirs.unlink(layout.STATE)
    with pytest.raises(StorageChanged, match="is gone"):
        ours.replace(layout.STATE, b'{"ours":3}')
    assert not (s3.bucket / PREFIX / layout.STATE).exists()
    assert ours.read(layout.STATE) is None
    ours.replace(layout.STATE, b'{"ours":4}')
    assert state_of(s3) == {"ours": 4}


def test_without_conditional_writes_it_looks_right_before(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    ours, theirs = open_store(STORAGE), open_store(STORAGE)
    ours.replace(layout.STATE, b"{}")
    ours.replace(layout.STATE, b'{"a":1}')
    assert theirs.read(layout.STATE) == b'{"a":1}'
    theirs.replace(layout.STATE, b'{"b":2}')
    with pytest.raises(StorageChanged):
        ours.replace(layout.STATE, b'{"ours":3}')
    assert state_of(s3) == {"b": 2}


def test_a_write_whose_answer_was_lost_is_known_for_ours(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(STORAGE).replace(layout.STATE, b"{}")
    way = SlowWay(s3.port, 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", way.url)
    store = open_store(STORAGE)
    assert store.read(layout.STATE) == b"{}"
    way.lose_answers = 1
    store.replace(layout.STATE, b'{"ours":1}')
    assert way.lose_answers == 0 and state_of(s3) == {"ours": 1}
    way.close()


def test_a_server_that_does_not_answer_is_given_up(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pullthrough.storage.objects.TIMEOUT", timedelta(seconds=0.5))
    store = open_store(STORAGE)
    assert s3.process is not None
    s3.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(StorageUnreadable, match="AWS_ENDPOINT_URL"):
            store.read(layout.STATE)
        with pytest.raises(StorageNotWritable):
            store.overwrite("pullthrough/x", b"x")
    finally:
        s3.process.send_signal(signal.SIGCONT)
    assert time.monotonic() - started < 30


def test_own_writes_are_seen_and_others_after_a_refresh(s3: S3) -> None:
    write(s3, "docker/registry/v2/blobs/sha256/aa/x/data", "1")
    store, other = open_store(STORAGE), open_store(STORAGE)
    blobs = "docker/registry/v2/blobs/sha256/aa"
    assert store.names(blobs) == ["x"]
    store.replace(f"{blobs}/y/data", b"22")
    assert set(store.names(blobs) or ()) == {"x", "y"} and not store.rmdir(f"{blobs}/y")
    assert store.unlink(f"{blobs}/x/data")
    assert store.names(blobs) == ["y"] and store.rmdir(f"{blobs}/x")
    assert store.names(f"{blobs}/x") is None and store.directories(blobs) == ["y"]
    other.replace(f"{blobs}/z/data", b"333")
    assert store.names(blobs) == ["y"]
    facts = store.facts(f"{blobs}/z/data")
    assert facts is not None and facts.size == 3, "what the listing does not have is asked for"
    store.refresh()
    assert set(store.names(blobs) or ()) == {"y", "z"}
    told = store.facts(f"{blobs}/z/data")
    assert told == facts == store.facts(f"{blobs}/z/data"), "listing and HEAD say the same"
    other.replace(f"{blobs}/z/data", b"4444")
    changed = store.facts(f"{blobs}/z/data")
    assert changed is not None and changed.size == 4, "asked again, it is looked at again"
    store.rename(f"{blobs}/z/data", "pullthrough/z")
    assert store.names(blobs) == ["y"] and store.read("pullthrough/z") == b"4444"
    assert store.unlink("pullthrough/nothing") is False
    assert set(store.names("") or ()) == {"docker", "pullthrough"}


def test_a_bucket_is_listed_completely_and_faster_in_parallel(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request takes 400 ms longer, as from far away: one after another, and as it is."""
    written = set()
    for number in range(24_000):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        written.add(f"sha256:{digest}")
        path = s3.bucket / PREFIX / layout.blob_path(f"sha256:{digest}")
        path.parent.mkdir(parents=True)
        path.touch()
    way = SlowWay(s3.port, 0.4)
    monkeypatch.setenv("AWS_ENDPOINT_URL", way.url)
    took = {}
    for concurrency in (1, objects.CONCURRENCY):
        monkeypatch.setattr(objects, "CONCURRENCY", concurrency)
        store = ObjectStore.open(STORAGE)
        before = s3.asked()
        started = time.monotonic()
        assert set(inventory.blob_digests(store)) == written
        took[concurrency] = time.monotonic() - started
        # One was made by open.
        asked = store.requests["list"] - 1
        assert eventually_asked(s3, before, asked) == {"s3_ListObjectsV2": asked}
        print(f"24,000 blobs, {concurrency} at once: {took[concurrency]:.1f} s, {store.requests}")
    way.close()
    assert took[objects.CONCURRENCY] < took[1] / 1.2


# -- tools ---------------------------------------------------------------------------------------------------------------


def everything_in(store: ObjectStore) -> survey.Survey:
    """What an audit reads."""
    found = survey.read_artifacts(store)
    survey.read_data(store, found)
    survey.read_tags(store, found)
    return found


def eventually_asked(s3: S3, before: Counter[str], requests: int) -> Counter[str]:
    """The server writes its log a little later."""
    eventually("the access log", lambda: (s3.asked() - before).total() >= requests)
    return s3.asked() - before


def write(s3: S3, path: str, content: str) -> None:
    where = s3.bucket / PREFIX / path
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(content)


def anybody_may(s3: S3, *actions: str) -> None:
    """A bucket policy for requests without a signature, where the server keeps it."""
    resources = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    statements = [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": action,
            "Resource": resources[0] if action == "s3:ListBucket" else resources[1],
        }
        for action in actions
    ]
    os.setxattr(s3.bucket, "user.policy", json.dumps({"Statement": statements}).encode())


def start_of(
    series: Series, gc: str, template: str, ttl: int, migration: str | None = None
) -> None:
    options = prepare.Options(
        series=series.name,
        gc=gc,
        ttl=ttl * SECOND,
        host="upstream.test",
        template=template,
        migration=migration,
    )
    prepare.prepare(open_store(STORAGE), SystemClock(), options)


@contextlib.contextmanager
def keeper(
    s3: S3, series: Series, upstream: Registry, cache: Registry, *, ttl: int
) -> Iterator[Callable[[], dict[str, Any]]]:
    """A `pullthrough keep` with ages short enough to watch; gives its report."""
    listen = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "pullthrough", "keep", "--storage", STORAGE, "--ttl", f"{ttl}s"]
    argv += ["--series", series.name, "--upstream-url", upstream.url, "--listen", listen]
    argv += ["--registry", f"127.0.0.1:{cache.port}", "--template", "on"]
    argv += ["--sweep-interval", "1s", "--minimum-age", "1s", "--data-delay", "1s"]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **s3.environment, "PYTHONPATH": str(ROOT / "operator")},
    )
    try:
        kept = Keep(process=process, url=f"http://{listen}")
        eventually("the keeper", lambda: answers(f"{kept.url}/healthz"), within=15)
        yield kept.report
    finally:
        process.kill()
        process.wait(timeout=10)
