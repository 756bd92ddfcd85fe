"""Where a registry keeps what, as a pure grammar of paths, read and written both ways.

Paths here are relative to the storage driver's root directory and use `/`. Source of the layout:
v3.1.1:registry/storage/paths.go:11-257 (2.8 has the same rules); of repository names:
github.com/distribution/reference regexp.go.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import NamedTuple

STATE = "scheduler-state.json"
"""The TTL state (2.8:registry/proxy/proxyregistry.go:39, v3.1.1:registry/proxy/...:67)."""
VERSION_2 = "docker/registry/v2"
REPOSITORIES = f"{VERSION_2}/repositories"
BLOBS = f"{VERSION_2}/blobs"
OURS = "pullthrough"
"""Directory of everything that is ours and not the registry's."""
NEXT_STATE_PREFIX = "scheduler-state.next."
"""`scheduler-state.next.<job uid>.json` is a migration Job's finished state."""
LAYERS = "_layers"
MANIFESTS = "_manifests"
REVISIONS = "_manifests/revisions"
TAGS = "_manifests/tags"
UPLOADS = "_uploads"
LINK = "link"
DATA = "data"
TEMPORARY = ".tmp"

ALGORITHMS: dict[str, int] = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Digest algorithms and how many hexadecimal digits each has (go-digest algorithm.go)."""
LONGEST_NAME = 255
"""Characters after what can be read as a domain: reference v0.6.0:reference.go:209."""
LONGEST_LINK = 7 + 1 + 128
"""Bytes of the longest digest; a link with more than this is garbage."""

_HEX = {algorithm: re.compile(f"[0-9a-f]{{{n}}}") for algorithm, n in ALGORITHMS.items()}
_DIGEST = re.compile("|".join(f"{a}:[0-9a-f]{{{n}}}" for a, n in ALGORITHMS.items()))
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
# The optional domain is why `Lib/alpine` is a legal repository and `Lib` is not. It cannot have a
# port here: ':' fails the storage driver's own check of paths.
_NAME = re.compile(rf"(?:{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*/)?({_COMPONENT}(?:/{_COMPONENT})*)")


class Kind(enum.IntEnum):
    """What a link is for; the value is EntryType in the TTL state (2.8:scheduler.go:18-20)."""

    BLOB = 0
    MANIFEST = 1


class Artifact(NamedTuple):
    """A blob or manifest as linked in one repository. A tuple, for there are 100,000 of them."""

    repository: str
    digest: str
    kind: Kind


KIND_DIRECTORIES: dict[Kind, str] = {Kind.BLOB: LAYERS, Kind.MANIFEST: REVISIONS}
"""Below a repository: where the links of each kind lie."""


def is_repository(name: str) -> bool:
    """Whether an entry for this repository can ever fire.

    The scheduler parses each key as a reference (v3.1.1:registry/proxy/scheduler/scheduler.go:179)
    and drops what does not parse.
    """
    match = _NAME.fullmatch(name)
    return match is not None and len(match[1]) <= LONGEST_NAME


def is_digest(text: str) -> bool:
    """Whether the text is a digest of a known algorithm with exactly its number of digits."""
    return _DIGEST.fullmatch(text) is not None


def is_hex(algorithm: str, text: str) -> bool:
    """Whether the text is the hexadecimal part of a digest of that algorithm."""
    pattern = _HEX.get(algorithm)
    return pattern is not None and pattern.fullmatch(text) is not None


def hex_names(algorithm: str, names: Iterable[str]) -> list[str]:
    """Those of the names that `is_hex` says are; in one go, for there are 100,000 of them."""
    pattern = _HEX.get(algorithm)
    if pattern is None:
        return []
    fullmatch = pattern.fullmatch
    return [name for name in names if fullmatch(name)]


def key(repository: str, digest: str) -> str:
    """The key of an entry: `<repository>@<digest>`, without any host."""
    return f"{repository}@{digest}"


def parse_key(text: str) -> tuple[str, str] | None:
    """Repository and digest of a key, or None where the registry could not act on it."""
    repository, at, digest = text.rpartition("@")
    return (repository, digest) if at and is_digest(digest) and is_repository(repository) else None


def repository_path(repository: str) -> str:
    """The directory of a repository; others may lie inside it (`a/b` and `a/b/c`)."""
    return f"{REPOSITORIES}/{repository}"


def link_directory(artifact: Artifact) -> str:
    """The directory that holds the link of an artifact and nothing else."""
    algorithm, _, digits = artifact.digest.partition(":")
    where = KIND_DIRECTORIES[artifact.kind]
    return f"{REPOSITORIES}/{artifact.repository}/{where}/{algorithm}/{digits}"


def link_path(artifact: Artifact) -> str:
    """The link file of an artifact: it holds a digest, without a newline."""
    return f"{link_directory(artifact)}/{LINK}"


def parse_link_path(path: str) -> Artifact | None:
    """The artifact whose link this path is, or None: `parse_link_path(link_path(a)) == a`."""
    if not path.startswith(REPOSITORIES + "/"):
        return None
    parts = path[len(REPOSITORIES) + 1 :].split("/")
    if len(parts) >= 6 and parts[-5:-3] == ["_manifests", "revisions"]:
        kind, end = Kind.MANIFEST, -5
    elif len(parts) >= 5 and parts[-4] == LAYERS:
        kind, end = Kind.BLOB, -4
    else:
        return None
    repository, digest = "/".join(parts[:end]), f"{parts[-3]}:{parts[-2]}"
    well_formed = parts[-1] == LINK and is_repository(repository) and is_digest(digest)
    return Artifact(repository, digest, kind) if well_formed else None


def blob_directory(digest: str) -> str:
    """The directory of a blob's bytes; unlike links these have a level of two digits more."""
    algorithm, _, digits = digest.partition(":")
    return f"{BLOBS}/{algorithm}/{digits[:2]}/{digits}"


def blob_path(digest: str) -> str:
    """The bytes of a blob: a layer, a configuration or a manifest's payload."""
    return f"{blob_directory(digest)}/{DATA}"


def parse_blob_path(path: str) -> str | None:
    """The digest whose bytes this path is, or None: `parse_blob_path(blob_path(d)) == d`."""
    parts = path.split("/")
    if len(parts) != 8 or "/".join(parts[:4]) != BLOBS or parts[7] != DATA:
        return None
    digest = f"{parts[4]}:{parts[6]}"
    return digest if is_digest(digest) and parts[5] == parts[6][:2] else None


def tag_link_path(repository: str, tag: str) -> str:
    """The link to what a tag points at now; rewritten by every pull of the tag."""
    return f"{REPOSITORIES}/{repository}/{TAGS}/{tag}/current/{LINK}"


def next_state_path(job: str) -> str:
    """Where the migration Job with this uid leaves its finished state."""
    return f"{NEXT_STATE_PREFIX}{job}.json"
