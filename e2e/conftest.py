"""One real cluster with the operator in it, for all stories of a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from e2e import cluster as clusters
from e2e.scene import Scene


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    """Brought up once; a machine that cannot is a skip with its reason, in CI a failure."""
    try:
        cluster = clusters.start()
    except clusters.Unavailable as why:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no cluster here: {why}")
    try:
        ready = Scene(cluster)
        ready.install_operator()
        yield ready
    finally:
        if not os.environ.get("KEEP"):
            cluster.stop()


@pytest.fixture
def namespace(scene: Scene, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the story's own, Pod Security Standard restricted, with an upstream in it."""
    mark = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:6]
    words = "".join(c if c.isalnum() else "-" for c in request.node.name.removeprefix("test_"))
    short = f"{words[:30].strip('-').lower()}-{mark}"
    with scene.namespace(f"s-{short}") as name:
        scene.upstream(name)
        yield name
