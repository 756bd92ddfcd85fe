"""The tests' own eyes: a pull must notice every way in which bytes can be wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import images
from tests.registry.servers import CAST, Registry

pytestmark = pytest.mark.registry


def blob(registry: Registry, digest: str) -> Path:
    digits = digest.removeprefix("sha256:")
    return registry.storage / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"


def layer_of(repository: str, tag: str) -> str:
    return max(CAST[repository, tag].blobs.items(), key=lambda item: len(item[1]))[0]


def test_the_same_names_make_the_same_images() -> None:
    again = images.image(
        "alpine", layers=[images.layer("shared", 300_000), images.layer("alpine", 100_000)]
    )
    assert again.digest == CAST["library/alpine", "3"].digest
    assert len(images.layer("shared", 1 << 20).content) - (1 << 20) < 20_000


def test_an_index_is_pulled_with_all_its_platforms(upstream: Registry) -> None:
    done = images.pull(upstream.url, "multi/arch", "latest")
    assert (done.manifests, done.blobs) == (3, 4)
    assert done.digest == CAST["multi/arch", "latest"].digest


def test_a_pull_notices_a_changed_byte(upstream: Registry) -> None:
    path = blob(upstream, layer_of("a/b", "1"))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(images.PullFailed, match="not sha256") as failed:
        images.pull(upstream.url, "a/b", "1")
    assert failed.value.wrong_content


def test_a_pull_notices_an_empty_body(upstream: Registry) -> None:
    blob(upstream, layer_of("a/b", "1")).write_bytes(b"")
    with pytest.raises(images.PullFailed, match="0 bytes came") as failed:
        images.pull(upstream.url, "a/b", "1")
    assert failed.value.wrong_content


def test_a_pull_notices_what_is_missing(upstream: Registry) -> None:
    blob(upstream, layer_of("a/b", "1")).unlink()
    with pytest.raises(images.PullFailed, match="HTTP 404"):
        images.pull(upstream.url, "a/b", "1")


def test_a_loop_measures_how_long_no_pull_succeeded(upstream: Registry) -> None:
    with images.PullLoop(upstream.url, ["a/b:1"], pause=0.02) as loop:
        while loop.attempts < 3:
            time.sleep(0.005)
        upstream.kill()
        failed_at = len(loop.failures)
        while len(loop.failures) < failed_at + 3:
            time.sleep(0.005)
        upstream.start()
        attempts = loop.attempts
        while loop.attempts < attempts + 3:
            time.sleep(0.005)
    assert 0.04 < loop.longest_gap < 20
    assert loop.wrong_bodies == [failure for failure in loop.failures if failure.cut]
