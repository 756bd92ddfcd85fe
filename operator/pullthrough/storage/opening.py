"""`--storage S`: a directory, or a bucket and prefix of an object store."""

from __future__ import annotations

from pullthrough.storage.store import FileStore, Store

SCHEMES = ("s3://", "gs://", "az://")


def open_store(text: str) -> Store:
    """The storage that `text` names: `s3://bucket/prefix`, `gs://`, `az://`, else a directory.

    What an object store needs is imported only for one: a directory's audit starts in 0.15 s.
    Raises StorageUnreadable: a missing mount or bucket, or missing rights, must never look empty.
    """
    if not text.startswith(SCHEMES):
        return FileStore(text)
    from pullthrough.storage.objects import ObjectStore

    return ObjectStore.open(text)
