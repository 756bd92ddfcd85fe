"""The seam: every read and write of the storage programs goes through a Store.

Paths are relative to the storage driver's root directory. Mutating calls are as small as the
system's, so that a test can stop a program after any one of them. `replace` builds the atomic
write from them; programs use that, never `create` alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from pullthrough.storage import layout
from pullthrough.storage.errors import StorageFull, StorageNotWritable, StorageUnreadable

FILE_MODE = 0o664
"""Others must read what we write (0600 is a crash loop), and a registry of another uid in the same
group must be able to rewrite the state in place, as 2.8 and 3.0 do."""
DIRECTORY_MODE = 0o775
WHOLE = 1 << 62


class Facts(NamedTuple):
    """What a stat says. Times in nanoseconds since 1970, size in bytes."""

    size: int
    mtime: int
    ctime: int
    inode: int
    is_directory: bool


class Clock(Protocol):
    """The time, as something that a test can set."""

    def now(self) -> int:
        """Nanoseconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Store(Protocol):
    """A registry's storage. "Not there" is an answer; anything else unexpected is an error:
    StorageUnreadable from reads, StorageNotWritable or StorageFull from the mutating calls."""

    def names(self, directory: str) -> list[str] | None:
        """Names in a directory, unsorted; None if it is not there (or is no directory)."""
        ...

    def directories(self, directory: str) -> list[str] | None:
        """Names of the directories in a directory, unsorted; None if it is not there."""
        ...

    def read(self, path: str, limit: int = WHOLE) -> bytes | None:
        """At most `limit` bytes from a file's start; None if it is not there."""
        ...

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        """Read `directory/<name>/<leaf>` for each name: (name, bytes), (name, None) if it is not
        there, (name, error) if it cannot be read. This is the hot loop of 100,000 links."""
        ...

    def facts(self, path: str) -> Facts | None:
        """What a stat says; None if it is not there. Follows symbolic links."""
        ...

    def free(self) -> int:
        """Bytes that may still be written."""
        ...

    def make_directories(self, path: str) -> None:
        """Make a directory and those above it, below the root, so that they last: what is written
        into a directory that a power cut takes away is lost however well it was synced."""
        ...

    def create(self, path: str, data: bytes) -> None:
        """Make a new file that must not exist, write it whole and fsync it."""
        ...

    def overwrite(self, path: str, data: bytes) -> None:
        """Write over a file from its start, padded with spaces to the file's old length, and fsync.
        Not atomic: for a few bytes of JSON on a full disk, where a second file does not fit."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename atomically, replacing the target."""
        ...

    def unlink(self, path: str) -> bool:
        """Remove a file; False if it was not there."""
        ...

    def rmdir(self, path: str) -> bool:
        """Remove a directory if it is empty; True if it is not there afterwards."""
        ...

    def sync_directory(self, path: str) -> None:
        """fsync a directory, so that renames and removals in it last."""
        ...


def replace(store: Store, path: str, data: bytes) -> None:
    """Write a file so that at every instant either the old or the new content is there, whole:
    aside, fsync, re-read and compare, rename, fsync the directory.

    Raises StorageFull or StorageNotWritable with the old content in place and nothing left aside
    (but after a kill: names that end in `.tmp`, which `prepare` removes).
    """
    directory = path.rpartition("/")[0]
    if directory:
        store.make_directories(directory)
    aside = f"{path}.{os.urandom(8).hex()}{layout.TEMPORARY}"
    try:
        store.create(aside, data)
        if store.read(aside) != data:
            msg = f"{path}: what was written reads back differently; check the volume"
            raise StorageNotWritable(msg)
        store.rename(aside, path)
    except (StorageNotWritable, StorageUnreadable):
        with contextlib.suppress(StorageNotWritable):
            store.unlink(aside)
        raise
    store.sync_directory(directory)


class FileStore:
    """A Store in a directory: the registry's `rootdirectory`.

    Raises StorageUnreadable if the root is not there: a missing mount must never look empty.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/") or "/"
        try:
            facts = os.stat(self.root)
        except OSError as error:
            raise _unreadable(self.root, error) from error
        if not stat.S_ISDIR(facts.st_mode):
            msg = f"{self.root} is not a directory; give the registry's rootdirectory"
            raise StorageUnreadable(msg)
        # Run by root for a registry that is not: what we make belongs to the storage's owner.
        self._owner = (facts.st_uid, facts.st_gid) if os.geteuid() == 0 else None
        if self._owner is not None:
            with contextlib.suppress(OSError):
                docker = os.stat(f"{self.root}/docker")
                self._owner = (docker.st_uid, docker.st_gid)

    def names(self, directory: str) -> list[str] | None:
        """See Store."""
        try:
            return os.listdir(self._at(directory))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(directory, error) from error

    def directories(self, directory: str) -> list[str] | None:
        """See Store."""
        try:
            with os.scandir(self._at(directory)) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(directory, error) from error

    def read(self, path: str, limit: int = WHOLE) -> bytes | None:
        """See Store."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            parts, left = [], limit
            while left > 0 and (part := os.read(descriptor, min(left, 1 << 24))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        except OSError as error:
            raise _unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """A file's bytes in order, `size` at once; nothing if it is not there. Raises
        StorageUnreadable."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            while piece := os.read(descriptor, size):
                yield piece
        except OSError as error:
            raise _unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        """See Store."""
        os_open, os_read, os_close = os.open, os.read, os.close
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            base = os_open(self._at(directory), flags | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            yield from ((name, None) for name in names)
            return
        except OSError as error:
            problem = _unreadable(directory, error)
            yield from ((name, problem) for name in names)
            return
        suffix = f"/{leaf}"
        try:
            for name in names:
                try:
                    descriptor = os_open(name + suffix, flags, dir_fd=base)
                    try:
                        content = os_read(descriptor, limit)
                    finally:
                        os_close(descriptor)
                except (FileNotFoundError, NotADirectoryError):
                    yield name, None
                except OSError as error:
                    yield name, _unreadable(f"{directory}/{name}/{leaf}", error)
                else:
                    yield name, content
        finally:
            os_close(base)

    def facts(self, path: str) -> Facts | None:
        """See Store."""
        try:
            found = os.stat(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        return Facts(
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_ino,
            stat.S_ISDIR(found.st_mode),
        )

    def free(self) -> int:
        """See Store."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise _unreadable(self.root, error) from error
        return found.f_bavail * found.f_frsize

    def make_directories(self, path: str) -> None:
        """See Store."""
        made = ""
        for part in path.split("/"):
            made = f"{made}/{part}" if made else part
            with _writing(made), contextlib.suppress(FileExistsError):
                os.mkdir(self._at(made))
                os.chmod(self._at(made), DIRECTORY_MODE)
                self._give(self._at(made))
                self.sync_directory(made.rpartition("/")[0])

    def create(self, path: str, data: bytes) -> None:
        """See Store."""
        with _writing(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self._at(path), flags, FILE_MODE)
            try:
                os.fchmod(descriptor, FILE_MODE)
                self._give(descriptor)
                _write_whole(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def overwrite(self, path: str, data: bytes) -> None:
        """See Store."""
        with _writing(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._at(path), flags, FILE_MODE)
            try:
                _write_whole(descriptor, data.ljust(os.fstat(descriptor).st_size))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        """See Store."""
        with _writing(target):
            os.rename(self._at(source), self._at(target))

    def unlink(self, path: str) -> bool:
        """See Store."""
        with _writing(path):
            try:
                os.unlink(self._at(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def rmdir(self, path: str) -> bool:
        """See Store."""
        with _writing(path):
            try:
                os.rmdir(self._at(path))
            except FileNotFoundError:
                return True
            except NotADirectoryError:
                return False
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
                    return False
                raise
        return True

    def sync_directory(self, path: str) -> None:
        """See Store."""
        with _writing(path or "."):
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _give(self, target: str | int) -> None:
        if self._owner is not None:
            os.chown(target, *self._owner)


def _write_whole(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _unreadable(path: str, error: OSError) -> StorageUnreadable:
    msg = f"{path}: {error.strerror or error}; check the volume and who may read it, then try again"
    return StorageUnreadable(msg)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn what the system says about a write into our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            msg = f"{path}: {error.strerror}; free some space or enlarge the volume"
            raise StorageFull(msg) from error
        msg = f"{path}: {error.strerror or error}; check that the volume is writable for this user"
        raise StorageNotWritable(msg) from error
