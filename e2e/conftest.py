"""One real cluster with the operator in it, for all stories of a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from e2e import cluster as clusters
from e2e.scene import Scene


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "node: stops or kills processes of pods, so the node must be on this machine"
    )


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    """Brought up once; a machine or cluster that cannot is a skip with its reason, in CI a failure."""
    try:
        cluster = clusters.start()
    except clusters.Unavailable as why:
        skip(f"no cluster here: {why}")
    try:
        yield from playing(cluster)
    finally:
        if not os.environ.get("KEEP"):
            cluster.stop()


def playing(cluster: clusters.Cluster) -> Iterator[Scene]:
    try:
        scene = Scene(cluster)
    except clusters.Unavailable as why:
        skip(f"no images here: {why}")
    try:
        try:
            scene.install_operator()
        except clusters.Unavailable as why:
            skip(f"no operator on this cluster: {why}")
        yield scene
    finally:
        if not os.environ.get("KEEP"):
            scene.leave()


@pytest.fixture
def namespace(scene: Scene, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the story's own, Pod Security Standard restricted, with an upstream in it."""
    if request.node.get_closest_marker("node") and not scene.cluster.is_here:
        pytest.skip(
            "this story stops or kills processes of pods, and the node is not on this machine"
        )
    mark = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:6]
    words = "".join(c if c.isalnum() else "-" for c in request.node.name.removeprefix("test_"))
    short = f"{words[:30].strip('-').lower()}-{mark}"
    with scene.namespace(f"s-{short}") as name:
        upstream = scene.upstream(name)
        if not scene.cluster.is_here and not scene.reaches(upstream):
            pytest.skip(f"stories pull from this machine, and it has no way to {upstream}")
        yield name


def skip(why: str) -> NoReturn:
    if os.environ.get("CI"):
        raise clusters.Unavailable(why)
    pytest.skip(why)
