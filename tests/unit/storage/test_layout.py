"""The grammar of paths: both ways, and nothing else is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.storage import layout
from pullthrough.storage.layout import Artifact, Kind

component = st.from_regex(r"[a-z0-9]{1,4}(?:(?:\.|_|__|-|--)[a-z0-9]{1,3}){0,2}", fullmatch=True)
repository = st.lists(component, min_size=1, max_size=4).map("/".join)
digest = st.sampled_from(sorted(layout.ALGORITHMS.items())).flatmap(
    lambda algorithm: st.text("0123456789abcdef", min_size=algorithm[1], max_size=algorithm[1]).map(
        lambda digits: f"{algorithm[0]}:{digits}"
    )
)
artifact = st.builds(Artifact, repository, digest, st.sampled_from(Kind))


@given(artifact)
def test_the_path_of_a_link_leads_back_to_its_artifact(a: Artifact) -> None:
    assert layout.parse_link_path(layout.link_path(a)) == a
    assert layout.link_path(a) == layout.link_directory(a) + "/link"


@given(digest)
def test_the_path_of_a_blob_leads_back_to_its_digest(d: str) -> None:
    assert layout.parse_blob_path(layout.blob_path(d)) == d


@given(repository, digest)
def test_a_key_leads_back_to_repository_and_digest(r: str, d: str) -> None:
    assert layout.parse_key(layout.key(r, d)) == (r, d)


@given(artifact, st.sampled_from(["link", "revisions", "_layers", "sha", "repositories"]))
def test_a_path_that_is_cut_or_bent_is_no_link(a: Artifact, victim: str) -> None:
    path = layout.link_path(a)
    assert layout.parse_link_path(path[:-1]) is None
    bent = path.replace(victim, "x/x", 1)
    assert bent == path or layout.parse_link_path(bent) != a


@pytest.mark.parametrize(
    "name",
    ["alpine", "library/alpine", "Lib/alpine", "ghcr.io/a/b", "a__b/c---d", "a/b/c", "x" * 255],
)
def test_these_are_repositories_whose_entries_fire(name: str) -> None:
    assert layout.is_repository(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Lib",
        "lib/Alpine",
        "a//b",
        "/a",
        "a/",
        "_a",
        "a_",
        "a..b",
        "a___b",
        "a:5000/b",
        "x" * 256,
    ],
)
def test_these_are_not(name: str) -> None:
    assert not layout.is_repository(name)


@pytest.mark.parametrize(
    "text",
    [
        "sha256:" + "0" * 63,
        "sha256:" + "A" * 64,
        "sha512:" + "0" * 64,
        "md5:" + "0" * 32,
        "0" * 64,
        "",
    ],
)
def test_these_are_no_digests(text: str) -> None:
    assert not layout.is_digest(text)


def test_uploads_and_tags_are_no_links_of_artifacts() -> None:
    base = "docker/registry/v2/repositories/a/b"
    assert layout.parse_link_path(f"{base}/_uploads/x/data") is None
    assert layout.parse_link_path(f"{base}/_manifests/tags/latest/current/link") is None
    assert layout.parse_link_path(f"{base}/_manifests/tags/t/index/sha256/{'0' * 64}/link") is None
