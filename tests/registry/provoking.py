"""How each way to leak is brought about: on a real registry by what the world does to it, else by hand.

Every function makes a storage on which no registry runs any more and says what must stay on it for ever: paths by the
class under which `audit` has to name them. What was left is found here by file names and HTTP alone, never by the code
under test; so are the registry's own words for it, which each function waits for.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pullthrough.storage.survey import Leak
from tests import images
from tests.registry.servers import Registry, Series, answers, eventually, free_port
from tests.storage_trees import Tree

REPOSITORIES = "docker/registry/v2/repositories"
BLOBS = "docker/registry/v2/blobs"
PAST = "2001-01-01T00:00:00Z"
TTL = "1h"
SHORTER_TTL = "10m"
GONE = "gone"
"""An entry without an artifact: `audit` counts it beside the leaks."""
UNSAVED_ATTEMPTS = 5
SAVED = 6
"""Seconds after which 2.8 has saved what it filled."""

Left = Mapping[Leak | str, set[str]]
"""Paths that stay (of GONE: keys), by the class that they must be named as."""


ONE = images.image("one", layers=[images.layer("shared", 20_000), images.layer("one", 20_000)])
CAST = {
    "one": ONE,
    "two": images.image(
        "two", layers=[images.layer("shared", 20_000), images.layer("two", 20_000)]
    ),
    "other": images.image("other", layers=[images.layer("other", 20_000)]),
    "docker": images.image("docker", layers=[images.layer("docker", 20_000)], flavour="docker"),
}
OWN_LAYER = images.layer("one", 20_000).digest
OWN_LAYER_OF_TWO = images.layer("two", 20_000).digest
BY_SHA512 = [images.layer(f"sha512-{number}", 5_000).content for number in range(2)]


def push_all(upstream: Registry) -> None:
    """The cast as `leak/<name>:1`; and blobs under their sha512."""
    for name, image in CAST.items():
        images.push(upstream.url, f"leak/{name}", "1", image)
    for content in BY_SHA512:
        _push_by_sha512(upstream, content)


@dataclass(kw_only=True)
class Scene:
    """One row on one series: where it happens and what it can start."""

    series: Series
    upstream: Registry
    folder: Path
    bases: dict[tuple[str, str], Path]
    """Storages that several rows begin with, by series and name; filled once."""
    bases_folder: Path
    started: list[Registry] = field(default_factory=list)
    unmount: list[Path] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    # -- registries ------------------------------------------------------------------------------

    def registry(
        self,
        storage: Path | None = None,
        *,
        ttl: str = TTL,
        delete: bool = True,
        upstream: str | None = None,
    ) -> Registry:
        """A cache, not started."""
        where = storage or self.storage
        where.mkdir(exist_ok=True)
        number = len(self.started)
        cache = Registry(
            binary=self.series.binary,
            storage=where,
            config=self.folder / f"{number}.yml",
            log=self.folder / f"{number}.log",
            port=free_port(),
        )
        is_current = self.series.name == "v3"
        drain = ", draintimeout: 5s" if is_current else ""
        expiry = f", ttl: {ttl}" if is_current else ""
        cache.configure(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: '{where}'}},"
            f" delete: {{enabled: {json.dumps(delete)}}}}}\n"
            f"http: {{addr: '127.0.0.1:{cache.port}'{drain}}}\n"
            f"proxy: {{remoteurl: '{upstream or self.upstream.url}'{expiry}}}\n"
            "log: {level: info}\n"
        )
        self.started.append(cache)
        return cache

    @contextlib.contextmanager
    def running(self, storage: Path | None = None, **how: Any) -> Iterator[Registry]:
        """A cache that runs, and is killed at the end if it was not ended before."""
        cache = self.registry(storage, **how)
        cache.start()
        try:
            yield cache
        finally:
            cache.kill()

    def close(self) -> None:
        for cache in self.started:
            cache.kill()
        for path in self.unmount:
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)

    def save(self, cache: Registry, look: Callable[[dict[str, int]], bool]) -> None:
        """Let it save its state as it does, and end it: 3.x at SIGTERM, 2.8 within 5 s."""
        if self.series.name == "v3":
            cache.stop()
        eventually(
            "the registry to save",
            lambda: (entries := entries_of(cache)) is not None and look(kinds(entries)),
            saw=lambda: entries_of(cache),
        )
        cache.kill()

    @contextlib.contextmanager
    def mounted(self, path: Path, *options: str) -> Iterator[None]:
        """Mounted on itself a path can be read and not removed; with `ro` not written either."""
        self._mount("--bind", str(path), str(path))
        self.unmount.append(path)
        if options:
            remount = ["mount", "-o", ",".join(("remount", "bind", *options)), str(path)]
            subprocess.run(remount, check=True, capture_output=True)
        yield
        subprocess.run(["umount", str(path)], check=True)
        self.unmount.remove(path)

    @contextlib.contextmanager
    def small_disk(self, where: Path) -> Iterator[None]:
        """A file system of 2 MiB."""
        where.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", str(where))
        self.unmount.append(where)
        yield
        subprocess.run(["umount", str(where)], check=True)
        self.unmount.remove(where)

    def _mount(self, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], check=False, capture_output=True)
        if done.returncode:
            if os.environ.get("CI") and os.geteuid() == 0:
                pytest.fail(f"root cannot mount here: {done.stderr!r}")
            pytest.skip("this takes a mount, and that takes root")

    # -- storages that several rows begin with ---------------------------------------------------

    def begin(self, base: str) -> None:
        """Put a copy of a base into place."""
        known = self.bases.get((self.series.version, base))
        if known is None:
            {"filled": self._fill_base, "expired": self._expire_base}[base]()
            known = self.bases_folder / f"{self.series.version}-{base}"
            shutil.move(self.storage, known)
            self.bases[self.series.version, base] = known
        shutil.copytree(known, self.storage)

    def _fill_base(self) -> None:
        with self.running() as cache:
            fill(cache, "one", "two")
            self.save(cache, lambda entries: len(entries) == 8)

    def _expire_base(self) -> None:
        self.begin("filled")
        expire(self.storage)
        with self.running() as cache:
            self.save(cache, lambda entries: not entries)
            assert "unknown blob" in cache.tail()


@contextlib.contextmanager
def faulty(upstream: Registry, fault: Callable[[str, bytes], tuple[bytes, int]]) -> Iterator[str]:
    """An upstream in front of the real one. `fault` is given the path and the body and says which
    bytes to send and which length to promise."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, digest = self.path, None
            reference = path.rpartition("/")[2]
            if reference == by_sha512(ONE.manifest.content):
                path, digest = path.replace(reference, ONE.digest), reference
            status, headers, body = fetch(
                upstream.url + path,
                method=self.command,
                accept=", ".join(self.headers.get_all("Accept") or []),
            )
            body, length = fault(path, body) if self.command == "GET" else (body, -1)
            self.send_response(status)
            promised = headers["Content-Length"] if length < 0 else str(length)
            for name in (
                "Content-Type",
                "Docker-Content-Digest",
                "Docker-Distribution-Api-Version",
            ):
                if name in headers:
                    is_digest = name == "Docker-Content-Digest" and digest is not None
                    self.send_header(name, str(digest) if is_digest else headers[name])
            self.send_header("Content-Length", promised)
            self.end_headers()
            self.wfile.write(body)
            if self.command == "GET" and len(body) != int(promised):
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- rows ----------------------------------------------------------------------------------------------------------------


def delete_is_off(scene: Scene) -> Left:
    scene.begin("filled")
    expire(scene.storage)
    with scene.running(delete=False) as cache:
        until_said(cache, "operation unsupported", times=8)
        scene.save(cache, lambda entries: not entries)
    return {Leak.UNCOVERED: links("one", "two")}


def ttl_is_zero(scene: Scene) -> Left:
    with scene.running(ttl="0s") as cache:
        fill(cache, "one")
        cache.stop()
    assert not cache.state.exists()
    return {Leak.UNCOVERED: links("one")}


def only_hits(scene: Scene) -> Left:
    killed_unsaved(scene)
    with scene.running() as cache:
        fill(cache, "one", "other")
        scene.save(cache, lambda entries: set(entries) == set(map(key, links("other"))))
    return {Leak.UNCOVERED: links("one")}


def payload_stays(scene: Scene) -> Left:
    scene.begin("expired")
    return {Leak.PAYLOAD: {data(CAST[name].digest) for name in ("one", "two")}}


def tags_stay(scene: Scene) -> Left:
    scene.begin("expired")
    found = set()
    for name in ("one", "two"):
        tag, digits = f"{REPOSITORIES}/leak/{name}/_manifests/tags/1", CAST[name].digest[7:]
        found |= {f"{tag}/current/link", f"{tag}/index/sha256/{digits}/link"}
    return {Leak.DEAD_TAG: found}


def directories_stay(scene: Scene) -> Left:
    scene.begin("expired")
    hollow = {
        os.path.relpath(base, scene.storage)
        for base, below, files in os.walk(scene.storage)
        if not below and not files and len(os.path.basename(base)) in (2, 64)
    }
    assert len(hollow) > 8
    return {Leak.EMPTIED: hollow}


def shared_data_goes(scene: Scene) -> Left:
    scene.begin("expired")
    dangling = {
        path
        for path in links("one", "two")
        if (scene.storage / path).exists() and not (scene.storage / data(digest(path))).exists()
    }
    assert len(dangling) == 1
    return {Leak.DANGLING: dangling}


def killed_unsaved(scene: Scene) -> Left:
    for _ in range(UNSAVED_ATTEMPTS):
        with scene.running() as cache:
            fill(cache, "one")
            cache.kill()
        if not cache.state.exists():
            return {Leak.UNCOVERED: links("one")}
        shutil.rmtree(scene.storage)  # its 5 s tick came in between
    msg = "it was never killed before it saved"
    raise AssertionError(msg)


def state_was_torn(scene: Scene) -> Left:
    scene.begin("filled")
    state = scene.storage / "scheduler-state.json"
    os.truncate(state, state.stat().st_size // 2)
    cache = scene.registry()
    cache.start(wait=False)
    assert cache.process is not None
    assert cache.process.wait(timeout=30) == 2, cache.tail()
    cache.process = None
    state.unlink()
    with scene.running() as again:
        fill(again, "one", "two")
        again.stop()
    assert not entries_of(again)
    return {Leak.UNCOVERED: links("one", "two")}


def two_replicas(scene: Scene) -> Left:
    with scene.running() as first, scene.running() as second:
        fill(first, "one")
        fill(second, "other")
        if scene.series.name == "v3":
            first.stop()
            second.stop()
        else:
            time.sleep(SAVED)
    entries = entries_of(first) or {}
    forgotten = {path for path in links("one", "other") if key(path) not in entries}
    assert 0 < len(forgotten) < 7, entries
    return {Leak.UNCOVERED: forgotten}


def deleting_the_link_fails(scene: Scene) -> Left:
    return _deleting_fails(scene, Leak.UNCOVERED, layer_link("one", OWN_LAYER))


def deleting_the_data_fails(scene: Scene) -> Left:
    return _deleting_fails(scene, Leak.ORPHAN, data(OWN_LAYER))


def _deleting_fails(scene: Scene, leak: Leak, path: str) -> Left:
    scene.begin("filled")
    expire(scene.storage)
    with scene.mounted(scene.storage / path):
        with scene.running() as cache:
            until_said(cache, "device or resource busy")
            scene.save(cache, lambda entries: not entries)
    return {leak: {path}}


def linking_fails(scene: Scene) -> Left:
    where = scene.storage / f"{REPOSITORIES}/leak/one/_layers/sha256"
    where.mkdir(parents=True)
    path = data(OWN_LAYER)
    with scene.mounted(where, "ro"), scene.running() as cache:
        with contextlib.suppress(images.PullFailed):
            images.fetch_blob(cache.url, "leak/one", OWN_LAYER)
        eventually("the data", (scene.storage / path).exists)
        until_said(cache, "read-only file system")
        cache.kill()
    return {Leak.ORPHAN: {path}}


def schema_1_was_asked_for(scene: Scene) -> Left:
    config = layer_link("docker", next(iter(CAST["docker"].blobs)))
    with scene.running() as cache:
        fetch(
            f"{cache.url}/v2/leak/docker/manifests/1",
            accept="application/vnd.docker.distribution.manifest.v1+prettyjws",
        )
        assert (scene.storage / config).exists()
        scene.save(cache, lambda entries: len(entries) == 1)
    assert key(config) not in (entries_of(cache) or {})
    return {Leak.UNCOVERED: {config}}


def blob_by_sha512(scene: Scene) -> Left:
    digests = [by_sha512(content) for content in BY_SHA512]
    with scene.running() as cache:
        for wanted in digests:
            status, _, body = fetch(f"{cache.url}/v2/leak/sha512/blobs/{wanted}")
            assert (status, by_sha512(body)) == (200, wanted)
        scene.save(cache, lambda entries: len(entries) == 2)
    expire(scene.storage, only=f"leak/sha512@{digests[0]}")
    with scene.running() as cache:
        gone = scene.storage / layer_link("sha512", digests[0])
        eventually("its expiry", lambda: not gone.exists())
        scene.save(cache, lambda entries: len(entries) == 1)
    stored = {layer_link("sha512", images.digest_of(content)) for content in BY_SHA512}
    assert all((scene.storage / path).exists() for path in stored)
    return {Leak.UNCOVERED: stored, Leak.ALIAS: {layer_link("sha512", digests[1])}}


def manifest_by_sha512(scene: Scene) -> Left:
    wanted = by_sha512(ONE.manifest.content)
    with faulty(scene.upstream, lambda _path, body: (body, len(body))) as upstream:
        with scene.running(upstream=upstream) as cache:
            status, _, body = fetch(
                f"{cache.url}/v2/leak/one/manifests/{wanted}", accept=images.ACCEPT
            )
            assert (status, body) == (200, ONE.manifest.content), cache.tail()
            scene.save(cache, bool)
    assert list(entries_of(cache) or {}) == [f"leak/one@{wanted}"]
    expire(scene.storage)
    with scene.running() as cache:
        until_said(cache, "unknown blob")
        scene.save(cache, lambda entries: not entries)
    revision = revision_link("one", ONE.digest)
    assert (scene.storage / revision).exists()
    return {Leak.UNCOVERED: {revision}}


def fill_was_cut(scene: Scene) -> Left:
    is_fixed = scene.series.version == "3.1.2"
    _failed_fill(scene, _wrong if is_fixed else _cut)
    uploads = scene.storage / f"{REPOSITORIES}/leak/one/_uploads"
    left = {str(path.relative_to(scene.storage)) for path in uploads.rglob("*") if path.is_file()}
    assert left
    return {Leak.UPLOAD: left}


def entry_without_blob(scene: Scene) -> Left:
    cache = _failed_fill(scene, _wrong, saved=1)
    assert list(entries_of(cache) or {}) == [f"leak/one@{OWN_LAYER}"]
    assert not (scene.storage / layer_link("one", OWN_LAYER)).exists()
    return {GONE: {f"leak/one@{OWN_LAYER}"}}


def _cut(path: str, body: bytes) -> tuple[bytes, int]:
    is_it = path.endswith(OWN_LAYER)
    return body[: len(body) // 2] if is_it else body, len(body)


def _wrong(path: str, body: bytes) -> tuple[bytes, int]:
    return bytes(len(body)) if path.endswith(OWN_LAYER) else body, len(body)


def _failed_fill(
    scene: Scene, fault: Callable[[str, bytes], tuple[bytes, int]], saved: int = 0
) -> Registry:
    with faulty(scene.upstream, fault) as upstream, scene.running(upstream=upstream) as cache:
        with contextlib.suppress(images.PullFailed):
            images.fetch_blob(cache.url, "leak/one", OWN_LAYER)
        until_said(cache, "level=error")
        if saved:
            scene.save(cache, lambda entries: len(entries) == saved)
        cache.kill()
    return cache


def temporary_file(scene: Scene) -> Left:
    disk = scene.folder / "disk"
    with scene.small_disk(disk):
        with scene.running(disk) as cache:
            fill(cache, "one")
            cache.state.unlink(missing_ok=True)
            fill(cache, "other")
            with contextlib.suppress(OSError), (disk / "ballast").open("wb", 0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            cache.stop()
        (disk / "ballast").unlink()
        shutil.copytree(disk, scene.storage)
    assert "no space left on device" in cache.tail()
    left = {path.name for path in scene.storage.glob("scheduler-state.json.*.tmp")}
    assert left and not entries_of(scene.registry()), cache.tail()
    return {Leak.TEMPORARY: left, Leak.UNCOVERED: links("one", "other")}


def filled_after_stop(scene: Scene) -> Left:
    tree = Tree(scene.storage)
    for content in ONE.blobs.values():
        tree.layer("leak/one", content)
    tree.manifest("leak/one", ONE.manifest.content, "1")
    return {Leak.UNCOVERED: links("one")}


def state_is_not_writable(scene: Scene) -> Left:
    state = scene.storage / "scheduler-state.json"
    scene.storage.mkdir()
    state.write_text("{}")
    with scene.mounted(state, "ro"), scene.running() as cache:
        fill(cache, "one")
        if scene.series.name == "v3":
            cache.stop()
        until_said(cache, "scheduler state")
        cache.kill()
    for leftover in scene.storage.glob("scheduler-state.json.*.tmp"):
        leftover.unlink()
    assert entries_of(cache) == {}
    return {Leak.UNCOVERED: links("one")}


def keys_with_host(scene: Scene) -> Left:
    scene.begin("filled")
    state = scene.storage / "scheduler-state.json"
    entries = {f"docker.io/{k}": v for k, v in json.loads(state.read_bytes()).items()}
    for name, entry in entries.items():
        entry.update(Key=name, ExpiryData=PAST)
    state.write_text(json.dumps(entries))
    with scene.running() as cache:
        until_said(cache, "Scheduler error", times=len(entries))
        scene.save(cache, lambda entries: not entries)
    return {Leak.UNCOVERED: links("one", "two")}


def pushed_before(scene: Scene) -> Left:
    plain = scene.registry()
    text = plain.config.read_text()
    plain.configure("".join(line for line in text.splitlines(True) if "proxy" not in line))
    plain.start()
    images.push(plain.url, "leak/one", "1", ONE)
    plain.stop()
    return {Leak.UNCOVERED: links("one")}


def empty_link(scene: Scene) -> Left:
    scene.begin("filled")
    path = layer_link("one", OWN_LAYER)
    os.truncate(scene.storage / path, 0)
    with scene.running() as cache:
        url = f"{cache.url}/v2/leak/one/blobs/{OWN_LAYER}"
        assert [fetch(url)[0] for _ in range(2)] == [500, 500]
    return {Leak.BAD_LINK: {path}}


def schema_1_manifests(scene: Scene) -> Left:
    scene.begin("filled")
    old = {"schemaVersion": 1, "name": "leak/old", "tag": "1", "fsLayers": [], "history": []}
    name = Tree(scene.storage).manifest("leak/old", json.dumps(old).encode())
    wanted = name.rpartition("@")[2]
    with scene.running() as cache:
        assert fetch(f"{cache.url}/v2/leak/old/manifests/{wanted}")[0] != 200
    done = subprocess.run(
        [str(cache.binary), "garbage-collect", "--dry-run", str(cache.config)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done
    return {Leak.UNCOVERED: {f"{REPOSITORIES}/leak/old/_manifests/revisions/{_below(wanted)}/link"}}


def ttl_was_lowered(scene: Scene) -> Left:
    scene.begin("filled")
    with scene.running(ttl=SHORTER_TTL) as cache:
        fill(cache, "one", "two")
        cache.stop()
    return {Leak.BEYOND: links("one", "two")}


def torn_data(scene: Scene) -> Left:
    scene.begin("filled")
    torn = {data(OWN_LAYER), data(CAST["two"].digest)}
    for path in torn:
        os.truncate(scene.storage / path, 0)
    with scene.running() as cache:
        for _ in range(2):
            status, headers, body = fetch(f"{cache.url}/v2/leak/one/blobs/{OWN_LAYER}")
            assert (status, headers["Content-Length"], body) == (200, "0", b"")
    return {Leak.TORN: torn}


# -- what lies there -----------------------------------------------------------------------------------------------------


def fill(cache: Registry, *names: str) -> None:
    """Pull, and wait until the last bytes are linked: a fill ends after its answer."""
    for name in names:
        images.pull(cache.url, f"leak/{name}", "1")
    eventually(
        "every fill to end", lambda: all((cache.storage / p).exists() for p in links(*names))
    )


def links(*names: str) -> set[str]:
    """Of everything that a pull of these images fetches."""
    return {
        path
        for name in names
        for path in (
            *(layer_link(name, one) for one in CAST[name].blobs),
            *(revision_link(name, manifest.digest) for manifest in CAST[name].manifests),
        )
    }


def layer_link(name: str, wanted: str) -> str:
    return f"{REPOSITORIES}/leak/{name}/_layers/{_below(wanted)}/link"


def revision_link(name: str, wanted: str) -> str:
    return f"{REPOSITORIES}/leak/{name}/_manifests/revisions/{_below(wanted)}/link"


def data(wanted: str) -> str:
    algorithm, _, digits = wanted.partition(":")
    return f"{BLOBS}/{algorithm}/{digits[:2]}/{digits}/data"


def digest(link: str) -> str:
    """That a link's directories name."""
    *_, algorithm, digits, _ = link.split("/")
    return f"{algorithm}:{digits}"


def key(link: str) -> str:
    """Of the entry that covers what is linked here."""
    repository = link.removeprefix(f"{REPOSITORIES}/").partition("/_")[0]
    return f"{repository}@{digest(link)}"


def by_sha512(content: bytes) -> str:
    return f"sha512:{hashlib.sha512(content).hexdigest()}"


def _below(wanted: str) -> str:
    return wanted.replace(":", "/")


def entries_of(cache: Registry) -> dict[str, Any] | None:
    """The state file's, or None while there is none or it is being written."""
    try:
        found: dict[str, Any] = json.loads(cache.state.read_bytes())
    except (OSError, ValueError):
        return None
    return found


def kinds(entries: Mapping[str, Any]) -> dict[str, int]:
    return {name: entry["EntryType"] for name, entry in entries.items()}


def expire(storage: Path, only: str | None = None) -> None:
    """Let what is scheduled be due at the next start: the same as waiting for a week."""
    path = storage / "scheduler-state.json"
    entries = json.loads(path.read_bytes())
    for name, entry in entries.items():
        if only in (None, name):
            entry["ExpiryData"] = PAST
    path.write_text(json.dumps(entries))


def plant_witness(storage: Path) -> Path:
    """An artifact that is due: once its data is gone, the scheduler has done what it will do."""
    path = storage / "scheduler-state.json"
    content = f"witness {datetime.now(UTC)}".encode()
    name = Tree(storage).layer("witness/one", content)
    entries = json.loads(path.read_bytes()) if path.exists() else {}
    entries[name] = {"Key": name, "ExpiryData": PAST, "EntryType": 0}
    path.write_text(json.dumps(entries))
    return storage / data(images.digest_of(content))


def until_said(cache: Registry, words: str, times: int = 1) -> None:
    eventually(
        f"{cache.binary.name} to say {words!r}",
        lambda: cache.log.read_text(errors="replace").count(words) >= times,
        saw=cache.tail,
    )


def fetch(
    url: str, *, method: str = "GET", accept: str = ""
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body, whatever they are; a body that is cut is what came of it."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(method, parts.path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as cut:
            body = cut.partial
        return answer.status, answer.headers, body
    finally:
        connection.close()


def _push_by_sha512(upstream: Registry, content: bytes) -> None:
    parts = urllib.parse.urlsplit(upstream.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.request("POST", "/v2/leak/sha512/blobs/uploads/")
    started = connection.getresponse()
    started.read()
    where = urllib.parse.urlsplit(started.headers["Location"])
    connection.request(
        "PUT", f"{where.path}?{where.query}&digest={by_sha512(content)}", body=content
    )
    put = connection.getresponse()
    assert put.status == 201, put.read()
    put.read()
    connection.close()
    assert answers(upstream.url + "/v2/")
