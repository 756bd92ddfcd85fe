"""Fuzz target: the grammar of paths and keys, in both directions (`make fuzz`)."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pullthrough.storage.layout"]):
    from pullthrough.storage import layout

DIGEST = "a" * 64
SEEDS = [
    f"docker/registry/v2/repositories/a/b/_layers/sha256/{DIGEST}/link",
    f"docker/registry/v2/repositories/Lib/b/_manifests/revisions/sha512/{DIGEST * 2}/link",
    f"docker/registry/v2/blobs/sha256/aa/{DIGEST}/data",
    f"library/alpine@sha256:{DIGEST}",
]


def one(raw: bytes) -> None:
    """What parses is written back as it was, and holds no way out of the root."""
    text = raw.decode("utf-8", "surrogateescape")
    artifact = layout.parse_link_path(text)
    if artifact is not None:
        assert layout.link_path(artifact) == text
        assert layout.parse_key(layout.key(artifact.repository, artifact.digest)) is not None
    digest = layout.parse_blob_path(text)
    assert digest is None or layout.blob_path(digest) == text
    key = layout.parse_key(text)
    if key is not None:
        assert layout.key(*key) == text
        assert text.isascii()
        for kind in layout.Kind:
            made = layout.Artifact(*key, kind)
            assert layout.parse_link_path(layout.link_path(made)) == made
        assert not {"", ".", ".."} & set(key[0].split("/"))
    if layout.is_repository(text):
        assert text.isprintable()


def main() -> None:
    """Run until libFuzzer's own limit."""
    corpus = Path("build/fuzz-grammar")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_text(seed)
    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
