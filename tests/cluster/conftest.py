"""One real API server for all tests of a run; each test makes a namespace of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e.cluster import apiserver
from e2e.cluster.apiserver import ApiServer
from e2e.cluster.errors import Unavailable


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """etcd and kube-apiserver; a machine that cannot run them is a skip with its reason, in CI a failure."""
    try:
        with apiserver.running() as server:
            yield server
    except Unavailable as why:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no API server here: {why}")
