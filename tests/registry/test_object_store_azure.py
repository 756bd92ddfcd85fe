"""The literal case of distribution issue 4249 on Azure Blob Storage, as far as its emulator goes.

Azurite is a program of npm's and not of this repository: where there is no `azurite-blob` on the PATH (`npm install -g
azurite`), nothing here runs. The account and its key are the ones that every Azurite has.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pullthrough.storage import layout, survey
from pullthrough.storage.errors import StorageChanged, StorageUnreadable
from pullthrough.storage.opening import open_store
from pullthrough.storage.reseed import reseed
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import Store, SystemClock
from tests.registry.conftest import program
from tests.registry.servers import CAST, Registry, answers, eventually, free_port, pull_all

pytestmark = pytest.mark.registry

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # fmt: skip
CONTAINER = "images"
ARTIFACTS = 22
MakeRegistry = Callable[..., Registry]


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An account with one container; its address."""
    found = shutil.which("azurite-blob")
    if found is None:
        pytest.skip("no azurite-blob on the PATH (npm install -g azurite)")
    port = free_port()
    address = [
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--location",
        str(tmp_path / "a"),
    ]
    with (tmp_path / "azurite.log").open("ab") as log:
        process = subprocess.Popen(
            [found, *address, "--silent", "--skipApiVersionCheck", "--disableTelemetry"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}/{ACCOUNT}"
    try:
        eventually("Azurite", lambda: answers(url), within=30)
        make_container(url)
        for name in [name for name in os.environ if name.startswith("AZURE_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
        yield url
    finally:
        process.kill()
        process.wait(timeout=10)


def make_container(url: str) -> None:
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    what = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    signed = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n{what}"
    code = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(code).decode()}",
        "Content-Length": "0",
    }
    request = urllib.request.Request(
        f"{url}/{CONTAINER}?restype=container", method="PUT", headers=headers
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201


def configure(cache: Registry, azure: str, upstream: Registry, prefix: str, ttl: str) -> None:
    cache.configure(
        "version: 0.1\n"
        "storage:\n"
        f"  azure: {{accountname: {ACCOUNT}, accountkey: '{KEY}', container: {CONTAINER},"
        f" serviceurl: '{azure}', rootdirectory: /{prefix}, credentials: {{type: shared_key}}}}\n"
        f"  delete: {{enabled: {str(ttl != '0s').lower()}}}\n"
        "  redirect: {disable: true}\n"
        f"http: {{addr: '127.0.0.1:{cache.port}', draintimeout: 5s}}\n"
        f"proxy: {{remoteurl: '{upstream.url}', ttl: {ttl}}}\n"
    )


def types(store: Store) -> dict[str, int]:
    found = json.loads(store.read(layout.STATE) or b"{}")
    return {key: entry["EntryType"] for key, entry in found.items()}


def read(prefix: str) -> survey.Survey:
    store = open_store(f"az://{CONTAINER}/{prefix}")
    found = survey.read_artifacts(store)
    survey.read_data(store, found)
    return found


def test_everything_filled_with_gc_off_expires_once_reseeded_over_azure(
    azure: str, upstream: Registry, make_registry: MakeRegistry
) -> None:
    cache = make_registry(program("registry-3.1.2"), "cache")
    configure(cache, azure, upstream, "own", "1h")
    cache.start()
    pull_all(cache)
    own = open_store(f"az://{CONTAINER}/own")
    eventually("the registry to save", lambda: len(types(own)) == ARTIFACTS)
    cache.stop()

    configure(cache, azure, upstream, "cache", "0s")
    cache.start()
    pull_all(cache)
    eventually("every fill to end", lambda: len(read("cache").artifacts) == ARTIFACTS)
    cache.stop()
    store = open_store(f"az://{CONTAINER}/cache")
    reseed(store, SystemClock(), ttl=10 * SECOND, spread=None, dry_run=False)
    reseeded = time.monotonic()
    assert types(store) == types(own)

    configure(cache, azure, upstream, "cache", "10s")
    cache.start()
    within = reseeded + 15 - time.monotonic()
    eventually("everything to go", lambda: not read("cache").artifacts, within=within)
    manifests = {manifest.digest for image in CAST.values() for manifest in image.manifests}
    assert read("cache").blobs <= len(manifests)
    pull_all(cache)


def test_the_store_says_the_same_on_azure(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (open_store(f"az://{CONTAINER}/p") for _ in range(2))
    assert ours.read("a/x") is None and ours.unlink("a/x") is False
    theirs.replace("a/x", b"1")
    with pytest.raises(StorageChanged):
        ours.replace("a/x", b"22")
    assert ours.read("a/x") == b"1"
    theirs.replace("a/x", b"333")
    with pytest.raises(StorageChanged):
        ours.replace("a/x", b"22")
    ours.refresh()
    assert ours.names("a") == ["x"]
    assert ours.facts("a/x") == ours.facts("a/x") == theirs.facts("a/x")
    ours.rename("a/x", "b/y")
    assert ours.names("") == ["b"] and ours.read("b/y") == b"333"
    with pytest.raises(StorageChanged, match="is gone"):
        theirs.replace("a/x", b"4444")
    with pytest.raises(StorageUnreadable, match="ContainerNotFound"):
        open_store("az://other/p")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong").decode())
    with pytest.raises(StorageUnreadable, match="AuthorizationFailure"):
        open_store(f"az://{CONTAINER}/p")
