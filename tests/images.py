"""Images for tests: made from a name, pushed to a plain registry, pulled through a cache and verified byte by byte.

Standard library only. The same name and sizes give the same bytes on every machine, so digests can be compared between
two registries; layers are stored, not compressed, so that a size asked for is nearly the size on disk.

A pull is what a container runtime does: manifest by tag, its children by digest, every config and layer, each checked
against its digest and its length. `PullLoop` pulls in rotation and remembers when it failed and for how long.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import tarfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ACCEPT: Final = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))

Flavour = Literal["oci", "docker"]


class PullFailed(Exception):
    """A pull did not give exactly the bytes it had to; the message says which request and what was wrong.

    `wrong_content`: the bytes came complete and are not those of the digest. `cut`: the body ended early under a good
    status. Neither may ever be our doing; every other failure is one that a client sees as such and retries.
    """

    def __init__(self, message: str, *, wrong_content: bool = False, cut: bool = False) -> None:
        super().__init__(message)
        self.wrong_content = wrong_content
        self.cut = cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's bytes as stored, and the digest of what is inside them."""

    content: bytes
    diff_id: str

    @property
    def digest(self) -> str:
        return digest_of(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as sent."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """All that must be pushed for one tag: blobs by digest, manifests children first; the last one gets the tag."""

    blobs: Mapping[str, bytes]
    manifests: Sequence[Manifest]

    @property
    def manifest(self) -> Manifest:
        return self.manifests[-1]

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def digests(self) -> frozenset[str]:
        """Of everything a full pull fetches."""
        return frozenset(self.blobs) | {manifest.digest for manifest in self.manifests}


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """What one pull fetched, each thing once."""

    digest: str
    manifests: int
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed pull of a loop."""

    time: datetime
    reference: str
    message: str
    wrong_content: bool = False
    cut: bool = False


# -- making --------------------------------------------------------------------------------------------------------------


def layer(name: str, size: int) -> Layer:
    """One file of `size` bytes that are a function of the name, in a tar in a gzip that does not compress."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(f"data/{hashlib.sha256(name.encode()).hexdigest()[:16]}")
        entry.size = size
        tar.addfile(entry, io.BytesIO(hashlib.shake_128(name.encode()).digest(size)))
    plain = archive.getvalue()
    return Layer(content=gzip.compress(plain, compresslevel=0, mtime=0), diff_id=digest_of(plain))


def image(
    name: str,
    *,
    layers: Sequence[Layer],
    flavour: Flavour = "oci",
    architecture: str = "amd64",
) -> Image:
    """An image of these layers; the name makes its config, and so its manifest, its own."""
    config_type, layer_type, manifest_type = (
        (OCI_CONFIG, OCI_LAYER, OCI_MANIFEST)
        if flavour == "oci"
        else (DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST)
    )
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": _descriptor(config_type, config),
            "layers": [_descriptor(layer_type, one.content) for one in layers],
        }
    )
    blobs = {digest_of(config): config, **{one.digest: one.content for one in layers}}
    return Image(blobs=blobs, manifests=[Manifest(media_type=manifest_type, content=manifest)])


def index(
    name: str,
    *,
    platforms: Sequence[str],
    layer_size: int,
    shared: Sequence[Layer] = (),
    flavour: Flavour = "oci",
) -> Image:
    """An index with an image for each platform: the shared layers and one of its own."""
    children = {
        platform: image(
            f"{name}-{platform}",
            layers=[*shared, layer(f"{name}-{platform}", layer_size)],
            flavour=flavour,
            architecture=platform,
        )
        for platform in platforms
    }
    media_type = OCI_INDEX if flavour == "oci" else DOCKER_LIST
    listed = [
        {
            **_descriptor(child.manifest.media_type, child.manifest.content),
            "platform": {"architecture": platform, "os": "linux"},
        }
        for platform, child in children.items()
    ]
    content = _json({"schemaVersion": 2, "mediaType": media_type, "manifests": listed})
    return Image(
        blobs={digest: blob for child in children.values() for digest, blob in child.blobs.items()},
        manifests=[
            *(child.manifest for child in children.values()),
            Manifest(media_type=media_type, content=content),
        ],
    )


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


# -- pushing and pulling ---------------------------------------------------------------------------------------------------


def push(base_url: str, repository: str, tag: str, image: Image, *, timeout: float = 30) -> None:
    """Push to a plain registry (a cache takes no pushes); blobs that are there are not sent again."""
    with _connection(base_url, timeout) as connection:
        for digest, content in image.blobs.items():
            if _request(connection, "HEAD", f"/v2/{repository}/blobs/{digest}").status == 200:
                continue
            started = _request(connection, "POST", f"/v2/{repository}/blobs/uploads/")
            _expect(started, 202, f"start an upload to {repository}")
            where = urllib.parse.urlsplit(started.headers["Location"])
            query = "&".join(part for part in (where.query, f"digest={digest}") if part)
            put = _request(connection, "PUT", f"{where.path}?{query}", body=content)
            _expect(put, 201, f"upload {digest} to {repository}")
        for manifest in image.manifests:
            reference = tag if manifest is image.manifest else manifest.digest
            put = _request(
                connection,
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                body=manifest.content,
                headers={"Content-Type": manifest.media_type},
            )
            _expect(put, 201, f"put the manifest {repository}:{reference}")


def pull(
    base_url: str, repository: str, reference: str, *, timeout: float = 30, blobs: bool = True
) -> PullResult:
    """Fetch the manifest, every child and every blob, and check each; PullFailed says what was not as it must be."""
    manifests: dict[str, int] = {}
    fetched: dict[str, int] = {}
    first = ""
    with _connection(base_url, timeout) as connection:
        waiting = [(reference, -1)]
        while waiting:
            wanted, size = waiting.pop()
            content = _fetch(
                connection, repository, "manifests", wanted, size, headers={"Accept": ACCEPT}
            )
            digest = digest_of(content)
            first = first or digest
            if digest in manifests:
                continue
            manifests[digest] = len(content)
            parsed = json.loads(content)
            waiting += [(child["digest"], child["size"]) for child in parsed.get("manifests", [])]
            listed = [parsed["config"], *parsed["layers"]] if "config" in parsed else []
            for blob in listed if blobs else []:
                if blob["digest"] not in fetched:
                    fetched[blob["digest"]] = len(
                        _fetch(connection, repository, "blobs", blob["digest"], blob["size"])
                    )
    return PullResult(
        digest=first,
        manifests=len(manifests),
        blobs=len(fetched),
        bytes=sum(manifests.values()) + sum(fetched.values()),
    )


def fetch_blob(
    base_url: str, repository: str, digest: str, size: int = -1, *, timeout: float = 30
) -> bytes:
    """One blob, verified."""
    with _connection(base_url, timeout) as connection:
        return _fetch(connection, repository, "blobs", digest, size)


class PullLoop:
    """Pulls references in rotation, each pull verified, from entering the context until leaving it.

    Bounded: it ends by itself after `deadline` seconds, and each request has a timeout, so a hanging cache is a failed
    pull and never a hanging test. `longest_gap` is the longest time in which no pull succeeded (0.0 if none failed).
    """

    def __init__(
        self,
        base_url: str,
        references: Sequence[str],
        *,
        pause: float = 0.1,
        timeout: float = 10,
        deadline: float = 900,
        retry: bool = False,
    ) -> None:
        self._base_url = base_url
        self._references = [reference.rsplit(":", 1) for reference in references]
        self._pause = pause
        self._timeout = timeout
        self._deadline = deadline
        self._retry = retry
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pull-loop", daemon=True)
        self._last_good = 0.0
        self._failing = False
        self._gap = 0.0
        self.gap_ended: float | None = None
        """When the longest gap was over, as `time.time` has it; None as long as no gap is."""
        self.attempts = 0
        self.bytes = 0
        self.failures: list[Failure] = []
        self.failed_retries: list[Failure] = []
        """With `retry`: failures that happened again on the one immediate retry."""

    def __enter__(self) -> PullLoop:
        self._last_good = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=self._timeout + 30)
        if self._failing:
            self._grow_gap()
            self._failing = False

    def until_good(self, within: float) -> None:
        """Waits until the newest pull succeeded; PullFailed if that takes longer than `within` seconds."""
        end = time.monotonic() + within
        while self._failing or not self.attempts:
            if time.monotonic() > end:
                last = self.failures[-1].message if self.failures else "no pull was made"
                msg = f"no pull succeeded for {within:.0f} s; last: {last}"
                raise PullFailed(msg)
            time.sleep(0.05)

    @property
    def longest_gap(self) -> float:
        """Longest time, in seconds, between a success and the next one with a failure in between."""
        return max(self._gap, time.monotonic() - self._last_good) if self._failing else self._gap

    @property
    def wrong_bodies(self) -> list[Failure]:
        """Failures in which the bytes were wrong, or cut short under a good status."""
        return [f for f in (*self.failures, *self.failed_retries) if f.wrong_content or f.cut]

    def _run(self) -> None:
        end = time.monotonic() + self._deadline
        while not self._stop.is_set() and time.monotonic() < end:
            repository, tag = self._references[self.attempts % len(self._references)]
            failure = self._attempt(repository, tag)
            self.attempts += 1
            if failure is not None:
                self.failures.append(failure)
                again = self._attempt(repository, tag) if self._retry else None
                if again is not None:
                    self.failed_retries.append(again)
            self._stop.wait(self._pause)

    def _attempt(self, repository: str, tag: str) -> Failure | None:
        try:
            done = pull(self._base_url, repository, tag, timeout=self._timeout)
        except (PullFailed, OSError, http.client.HTTPException, ValueError) as error:
            self._failing = True
            return Failure(
                time=datetime.now(UTC),
                reference=f"{repository}:{tag}",
                message=f"{type(error).__name__}: {error}",
                wrong_content=isinstance(error, PullFailed) and error.wrong_content,
                cut=isinstance(error, PullFailed) and error.cut,
            )
        self.bytes += done.bytes
        if self._failing:
            self._grow_gap()
            self._failing = False
        self._last_good = time.monotonic()
        return None

    def _grow_gap(self) -> None:
        gap = time.monotonic() - self._last_good
        if gap > self._gap:
            self._gap, self.gap_ended = gap, time.time()


# -- HTTP ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes


@contextlib.contextmanager
def _connection(base_url: str, timeout: float) -> Iterator[http.client.HTTPConnection]:
    parts = urllib.parse.urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        yield connection
    finally:
        connection.close()


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> _Answer:
    connection.request(method, path, body=body, headers=dict(headers or {}))
    response = connection.getresponse()
    return _Answer(
        status=response.status,
        headers={key.title(): value for key, value in response.getheaders()},
        content=response.read(),
    )


def _fetch(
    connection: http.client.HTTPConnection,
    repository: str,
    kind: str,
    reference: str,
    size: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """GET one manifest or blob; `size` is what its parent says of it, -1 for what has no parent."""
    what = f"GET {repository} {kind}/{reference}"
    try:
        answer = _request(
            connection, "GET", f"/v2/{repository}/{kind}/{reference}", headers=headers
        )
    except http.client.IncompleteRead as cut:
        msg = f"{what}: the body ended after {len(cut.partial)} bytes, {cut.expected} more were promised"
        raise PullFailed(msg, cut=True) from cut
    except (OSError, http.client.HTTPException) as error:
        msg = f"{what}: {type(error).__name__}: {error}"
        raise PullFailed(msg) from error
    _expect(answer, 200, what)
    content = answer.content
    if size >= 0 and len(content) != size:
        msg = f"{what}: {len(content)} bytes came, its descriptor says {size}"
        raise PullFailed(msg, wrong_content=True)
    wanted = reference if ":" in reference else answer.headers.get("Docker-Content-Digest", "")
    if wanted and digest_of(content) != wanted:
        msg = f"{what}: the bytes have the digest {digest_of(content)}, not {wanted}"
        raise PullFailed(msg, wrong_content=True)
    return content


def _expect(answer: _Answer, status: int, what: str) -> None:
    if answer.status != status:
        msg = f"{what}: HTTP {answer.status} instead of {status}: {answer.content[:300]!r}"
        raise PullFailed(msg)


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
