"""What of the object store needs no server; everything else runs on real ones in tests/registry/test_object_store*.py.

For Google Cloud Storage this is all that is tested: that its client can be made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pullthrough.storage import layout, objects
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.opening import open_store
from pullthrough.storage.store import FileStore

FOUND = objects._Object(71, 0, 0)
SHA256, SHA512 = "a" * 64, "b" * 128


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


def test_a_directory_needs_nothing_of_an_object_store(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), FileStore)
    program = (
        "import sys; from pullthrough.storage import audit;"
        f" audit.main(['--storage', {str(tmp_path)!r}]); print('obstore' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(objects.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("text", ["s3://", "s3:///x", "gs://b/x//y", "az://b/../x", "s3://b/./x"])
def test_what_names_no_prefix_is_refused_with_what_to_give(text: str) -> None:
    with pytest.raises(StorageUnreadable, match="PREFIX"):
        open_store(text)


def test_clients_of_all_three_clouds_are_made_without_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for scheme in ("s3", "gs", "az"):
        store = objects.ObjectStore(scheme, "bucket", "a/prefix")
        assert (store.name, store.requests) == (f"{scheme}://bucket/a/prefix", {})


def test_without_an_account_azure_says_what_to_check() -> None:
    with pytest.raises(StorageUnreadable, match=r"Account.*AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/prefix")


@pytest.mark.parametrize("marker_first", [True, False])
def test_the_marker_of_a_folder_hides_nothing_in_it(marker_first: bool) -> None:
    tree: objects._Tree = {}
    planted = [("a/b", FOUND._replace(size=0)), ("a/b/c", FOUND)]
    for path, found in planted if marker_first else reversed(planted):
        objects._plant(tree, path, found)
    assert tree == {"a": {"b": {"c": FOUND}}}


def test_a_directory_goes_with_the_last_that_lies_in_it() -> None:
    tree: objects._Tree = {}
    for path in ("a/b/c", "a/d"):
        objects._plant(tree, path, FOUND)
    objects._uproot(tree, "a/b/c")
    assert tree == {"a": {"d": FOUND}}
    objects._uproot(tree, "a/x/y")
    objects._uproot(tree, "a/d")
    assert tree == {}


@pytest.mark.parametrize(
    ("algorithm", "name", "size", "says"),
    [
        ("sha256", SHA256, 71, f"sha256:{SHA256}"),
        ("sha512", SHA512, 135, f"sha512:{SHA512}"),
        ("sha512", SHA512, 71, None),
        ("sha256", SHA256, 72, None),
        ("sha256", SHA256, 0, ""),
        ("sha256", "a" * 63, 70, None),
        ("md5", "a" * 32, 36, None),
    ],
)
def test_a_link_of_its_digests_length_is_not_read(
    algorithm: str, name: str, size: int, says: str | None
) -> None:
    content = objects._content(algorithm, name, layout.LINK, size, None)
    assert content == (None if says is None else says.encode())


@pytest.mark.parametrize(
    ("prefix", "is_splittable"),
    [
        (layout.BLOBS, True),
        (f"{layout.BLOBS}/sha256", True),
        (f"{layout.BLOBS}/sha256/ab", False),
        (layout.REPOSITORIES, True),
        (f"{layout.REPOSITORIES}/library/python", True),
        (f"{layout.REPOSITORIES}/library/python/_layers/sha256", False),
    ],
)
def test_only_where_many_lie_below_is_a_listing_split(prefix: str, is_splittable: bool) -> None:
    assert objects._is_splittable(prefix) is is_splittable
