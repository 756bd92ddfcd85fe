"""Fixtures: the two series, an upstream with a cast of images, caches, keepers. See servers.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.cluster import programs
from tests import images
from tests.registry.servers import (
    CAST,
    ROOT,
    Keep,
    Registry,
    Series,
    answers,
    configure,
    eventually,
    free_port,
)


def program(name: str) -> Path:
    """A registry's program; a machine that cannot have it skips with the reason, and fails in CI."""
    try:
        return programs.ensure(name)[name]
    except Exception as why:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no {name} here: {why}")


@pytest.fixture(params=["v3", "v2"])
def series(request: pytest.FixtureRequest) -> Series:
    version = {"v3": "3.1.2", "v2": "2.8.2"}[request.param]
    return Series(name=request.param, version=version, binary=program(f"registry-{version}"))


@pytest.fixture
def make_registry(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Makes registries, not started; all that run are ended afterwards."""
    made: list[Registry] = []

    def make(binary: Path, name: str, storage: Path | None = None) -> Registry:
        where = storage or tmp_path / name
        where.mkdir(exist_ok=True)
        registry = Registry(
            binary=binary,
            storage=where,
            config=tmp_path / f"{name}.yml",
            log=tmp_path / f"{name}.log",
            port=free_port(),
        )
        made.append(registry)
        return registry

    yield make
    for registry in made:
        registry.kill()


@pytest.fixture
def upstream(make_registry: Callable[..., Registry]) -> Registry:
    """A plain registry 3.1.2 with five repositories: a shared layer, an index, nested names, docker types."""
    registry = make_registry(program("registry-3.1.2"), "upstream")
    registry.configure(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{registry.storage}'}}}}\n"
        f"http: {{addr: '127.0.0.1:{registry.port}'}}\nlog: {{level: warn}}\n"
    )
    registry.start()
    for (repository, tag), image in CAST.items():
        images.push(registry.url, repository, tag, image)
    return registry


@pytest.fixture
def make_cache(
    make_registry: Callable[..., Registry], series: Series, upstream: Registry
) -> Callable[..., Registry]:
    """Makes caches of the upstream in the series under test, garbage collection off, started."""

    def make(
        name: str, *, ttl: str | None = None, storage: Path | None = None, start: bool = True
    ) -> Registry:
        cache = make_registry(series.binary, name, storage)
        configure(cache, series, upstream, ttl)
        if start:
            cache.start()
        return cache

    return make


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Keep]]:
    """Starts keepers with ages short enough to watch; options override."""
    started: list[Keep] = []

    def start(
        cache: Registry, series: Series, upstream_url: str, *, ttl: str | None, **options: str
    ) -> Keep:
        port = free_port()
        given = {
            "sweep-interval": "1s",
            "minimum-age": "1s",
            "upload-age": "30s",
            "data-delay": "1s",
            "state-interval": "2s",
            "backstop-margin": "10s",
            "probe-interval": "1s",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        argv = [
            sys.executable,
            "-m",
            "pullthrough",
            "keep",
            "--storage",
            str(cache.storage),
            "--series",
            series.name,
        ]
        argv += ["--ttl", ttl] if ttl else ["--no-ttl"]
        argv += [
            "--upstream-url",
            upstream_url,
            "--registry",
            f"127.0.0.1:{cache.port}",
            "--listen",
            f"127.0.0.1:{port}",
        ]
        argv += [word for name, value in given.items() for word in (f"--{name}", value)]
        with (tmp_path / "keep.log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
            )
        keeper = Keep(process=process, url=f"http://127.0.0.1:{port}")
        started.append(keeper)
        eventually("the keeper's report", lambda: answers(f"{keeper.url}/healthz"), within=15)
        return keeper

    yield start
    for keeper in started:
        if keeper.process.poll() is None:
            keeper.process.terminate()
            try:
                keeper.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                keeper.process.kill()
                keeper.process.wait(timeout=5)
