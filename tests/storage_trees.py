"""Storage trees for tests: a registry's layout in a directory, a clock, stores that break.

Built from bytes and paths, not with the code under test: the layout is spelled out here once more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pullthrough.storage.errors import StorageFull, StorageUnreadable
from pullthrough.storage.store import Facts, FileStore

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


class Killed(BaseException):
    """The program was killed here (not an Exception: nothing may catch it)."""


@dataclass
class FakeClock:
    """A clock that stands still unless told otherwise; sleeping moves it."""

    time: int

    def now(self) -> int:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += int(seconds * SECOND)


class Tree:
    """A registry's storage in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.repositories = root / "docker/registry/v2/repositories"
        self.blobs = root / "docker/registry/v2/blobs"

    @property
    def store(self) -> FileStore:
        return FileStore(self.root)

    def data(self, content: bytes) -> str:
        digits = hashlib.sha256(content).hexdigest()
        path = self.blobs / "sha256" / digits[:2] / digits
        path.mkdir(parents=True, exist_ok=True)
        (path / "data").write_bytes(content)
        return f"sha256:{digits}"

    def link(self, repository: str, where: str, digest: str, content: str | None = None) -> Path:
        algorithm, digits = digest.split(":")
        path = self.repositories / repository / where / algorithm / digits / "link"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest if content is None else content)
        return path

    def layer(self, repository: str, content: bytes) -> str:
        digest = self.data(content)
        self.link(repository, "_layers", digest)
        return f"{repository}@{digest}"

    def manifest(self, repository: str, content: bytes, tag: str | None = None) -> str:
        digest = self.data(content)
        self.link(repository, "_manifests/revisions", digest)
        if tag is not None:
            path = self.repositories / repository / "_manifests/tags" / tag / "current/link"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(digest)
        return f"{repository}@{digest}"

    def populate(self) -> dict[str, int]:
        """A handful of images; returns the keys that a fresh registry itself would have."""
        kinds = {}
        for repository in ["library/alpine", "a/b", "a/b/c", "Lib/alpine"]:
            for content in [b"shared layer", f"own layer of {repository}".encode()]:
                kinds[self.layer(repository, content)] = 0
            kinds[self.manifest(repository, f"manifest of {repository}".encode(), "latest")] = 1
        kinds[self.manifest("only/manifest", b"seen by HEAD")] = 1
        kinds[self.layer("only/layer", b"fetched by digest")] = 0
        return kinds

    @property
    def state_path(self) -> Path:
        return self.root / "scheduler-state.json"

    def state(self) -> dict[str, dict[str, object]]:
        return dict(json.loads(self.state_path.read_bytes()))

    def start(self) -> dict[str, object]:
        return dict(json.loads((self.root / "pullthrough/start.json").read_bytes()))

    def age(self, seconds: int = 2 * 86_400) -> None:
        """Let everything have been written that long ago (but for the ctime, which nobody can set)."""
        for path in [self.root, *self.root.rglob("*")]:
            if not path.is_symlink():
                then = path.stat().st_mtime_ns - seconds * SECOND
                os.utime(path, ns=(then, then))

    def mark(self, host: str = "docker.io") -> None:
        path = self.root / "pullthrough"
        path.mkdir(exist_ok=True)
        (path / "marker.json").write_text(json.dumps({"format": 1, "upstreamHost": host}))

    def files(self) -> dict[str, bytes]:
        """Every file by relative path."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }


class KillingStore(FileStore):
    """Stops the program at its n-th mutating call; half of them after the call, half in the middle
    of what it does (a new file with half of its bytes)."""

    def __init__(self, root: Path, survive: int) -> None:
        super().__init__(root)
        self.left = survive
        self.opened = 0

    def _spend(self) -> None:
        if self.left <= 0:
            raise Killed
        self.left -= 1

    def make_directories(self, path: str) -> None:
        self._spend()
        super().make_directories(path)

    def create(self, path: str, data: bytes) -> None:
        if self.left <= 0:
            super().create(path, data[: len(data) // 2])
        self._spend()
        super().create(path, data)

    def overwrite(self, path: str, data: bytes) -> None:
        self._spend()
        super().overwrite(path, data)

    def rename(self, source: str, target: str) -> None:
        self._spend()
        super().rename(source, target)

    def unlink(self, path: str) -> bool:
        self._spend()
        return super().unlink(path)

    def rmdir(self, path: str) -> bool:
        self._spend()
        return super().rmdir(path)

    def sync_directory(self, path: str) -> None:
        self._spend()
        super().sync_directory(path)


class CountingStore(FileStore):
    """Remembers which links were opened and whether anything was written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []
        self.created: list[str] = []

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        names = list(names)
        self.opened += [f"{directory}/{name}" for name in names]
        return super().read_each(directory, names, leaf, limit)

    def create(self, path: str, data: bytes) -> None:
        self.created.append(path)
        super().create(path, data)


class FullStore(FileStore):
    """No file of more than `room` bytes can be made, until `freed_by` returns that it can."""

    room = 0

    def create(self, path: str, data: bytes) -> None:
        if len(data) > self.room:
            msg = f"{path}: No space left on device; free some space or enlarge the volume"
            raise StorageFull(msg)
        super().create(path, data)


class UnreadableStore(FileStore):
    """Links and directories whose path contains `broken` cannot be read."""

    broken = "\0"

    def names(self, directory: str) -> list[str] | None:
        if self.broken in directory:
            msg = f"{directory}: Input/output error; check the volume"
            raise StorageUnreadable(msg)
        return super().names(directory)

    def names_each(
        self, directory: str, names: Iterable[str]
    ) -> Iterator[tuple[str, list[str] | StorageUnreadable | None]]:
        for name, below in super().names_each(directory, names):
            path = f"{directory}/{name}"
            broken = StorageUnreadable(f"{path}: Input/output error; check the volume")
            yield name, broken if self.broken in path else below

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        for name, content in super().read_each(directory, names, leaf, limit):
            path = f"{directory}/{name}/{leaf}"
            broken = StorageUnreadable(f"{path}: Input/output error; check the volume")
            yield name, broken if self.broken in path else content


class FailingStore(FileStore):
    """Its read number `fails_at` gets an input/output error; counts what can be read in one call."""

    def __init__(self, root: Path, fails_at: int = -1) -> None:
        super().__init__(root)
        self.fails_at = fails_at
        self.reads: list[str] = []

    def _read(self, path: str) -> StorageUnreadable | None:
        self.reads.append(path)
        if len(self.reads) - 1 != self.fails_at:
            return None
        return StorageUnreadable(f"{path}: Input/output error; check the volume")

    def _ask(self, path: str) -> None:
        error = self._read(path)
        if error is not None:
            raise error

    def names(self, directory: str) -> list[str] | None:
        self._ask(directory)
        return super().names(directory)

    def directories(self, directory: str) -> list[str] | None:
        self._ask(directory)
        return super().directories(directory)

    def read(self, path: str, limit: int = 1 << 62) -> bytes | None:
        self._ask(path)
        return super().read(path, limit)

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        for name, content in super().read_each(directory, names, leaf, limit):
            yield name, self._read(f"{directory}/{name}/{leaf}") or content

    def names_each(
        self, directory: str, names: Iterable[str]
    ) -> Iterator[tuple[str, list[str] | StorageUnreadable | None]]:
        for name, below in super().names_each(directory, names):
            yield name, self._read(f"{directory}/{name}") or below

    def facts_each(
        self, directory: str, names: Iterable[str], leaf: str
    ) -> Iterator[tuple[str, Facts | StorageUnreadable | None]]:
        for name, facts in super().facts_each(directory, names, leaf):
            yield name, self._read(f"{directory}/{name}/{leaf}") or facts

    def facts(self, path: str) -> Facts | None:
        self._ask(path)
        return super().facts(path)

    def reads_back(self, path: str, data: bytes) -> bool:
        self._ask(path)
        return super().reads_back(path, data)

    def free(self) -> int:
        self._ask("")
        return super().free()
