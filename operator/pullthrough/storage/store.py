"""The seam: every read and write of the storage programs goes through a Store.

Paths are relative to the storage driver's root directory. Mutating calls are as small as the
system's, so that a test can stop a program after any one of them. `replace` is the atomic write;
programs use that, never `create` alone.
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

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Nor waits for the other end of a pipe that lies where a file belongs."""
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMEMBERED = 100_000
"""Directories of which a FileStore remembers that the way to them has no symbolic link."""


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

    def names_each(
        self, directory: str, names: Iterable[str]
    ) -> Iterator[tuple[str, list[str] | StorageUnreadable | None]]:
        """`names` of `directory/<name>` for each name: (name, names), (name, None) if it is not
        there or no directory, (name, error) if it cannot be listed."""
        ...

    def facts_each(
        self, directory: str, names: Iterable[str], leaf: str
    ) -> Iterator[tuple[str, Facts | StorageUnreadable | None]]:
        """`facts` of `directory/<name>/<leaf>` for each name, errors as answers; `leaf` is the
        name of a file."""
        ...

    def facts(self, path: str) -> Facts | None:
        """What a stat says; None if it is not there."""
        ...

    def free(self) -> int:
        """Bytes that may still be written."""
        ...

    def refresh(self) -> None:
        """Forget what was listed before: a new walk begins. Where nothing is kept, nothing is done."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write a file so that at every instant either the old or the new content is there, whole.

        Raises StorageFull or StorageNotWritable with the old content in place.
        """
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
    """Write a file whole: see Store.replace."""
    store.replace(path, data)


class FileStore:
    """A Store in a directory: the registry's `rootdirectory`.

    Symbolic links below the root are never followed: whoever can write on the storage could lead a
    program that runs as root anywhere. They are errors that name them, never "not there": what lies
    behind one may be served, so nothing may be concluded. Every change is made through descriptors
    of directories that were opened one by one; reads check the way (a race could only show a
    program wrong content, not make it write elsewhere). The root itself may be a link.

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
                docker = os.lstat(f"{self.root}/docker")
                self._owner = (docker.st_uid, docker.st_gid)
        self._straight: set[str] = set()

    def names(self, directory: str) -> list[str] | None:
        """See Store."""
        try:
            descriptor = self._open_directory(directory)
            try:
                return os.listdir(descriptor)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(directory, error) from error

    def directories(self, directory: str) -> list[str] | None:
        """See Store. Symbolic links are among them: to look into one is an error that names it."""
        try:
            descriptor = self._open_directory(directory)
            try:
                with os.scandir(descriptor) as entries:
                    return [
                        entry.name
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False) or entry.is_symlink()
                    ]
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(directory, error) from error

    def read(self, path: str, limit: int = WHOLE) -> bytes | None:
        """See Store."""
        try:
            with self._parent(path) as (parent, name):
                descriptor = os.open(name, _READ, dir_fd=parent)
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
            with self._parent(path) as (parent, name):
                descriptor = os.open(name, _READ, dir_fd=parent)
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

    def names_each(
        self, directory: str, names: Iterable[str]
    ) -> Iterator[tuple[str, list[str] | StorageUnreadable | None]]:
        """See Store. The way to them is gone once, and not again for each of 100,000."""
        try:
            base = self._open_directory(directory)
        except OSError as error:
            yield from _same_for_all(directory, names, error)
            return
        os_open, os_close, listdir = os.open, os.close, os.listdir
        try:
            for name in names:
                try:
                    # Where a symbolic link lies this fails like where a file lies.
                    descriptor = os_open(name, _LIST, dir_fd=base)
                    try:
                        found = listdir(descriptor)
                    finally:
                        os_close(descriptor)
                except FileNotFoundError:
                    yield name, None
                except NotADirectoryError:
                    yield name, self._not_listed(base, name, f"{directory}/{name}")
                except OSError as error:
                    yield name, _unreadable(f"{directory}/{name}", error)
                else:
                    yield name, found
        finally:
            os_close(base)

    def facts_each(
        self, directory: str, names: Iterable[str], leaf: str
    ) -> Iterator[tuple[str, Facts | StorageUnreadable | None]]:
        """See Store."""
        try:
            base = self._open_directory(directory)
        except OSError as error:
            yield from _same_for_all(directory, names, error)
            return
        os_stat, is_link, suffix = os.stat, stat.S_ISLNK, f"/{leaf}"
        try:
            try:
                crooked = _symbolic_links(base)
            except OSError as error:
                yield from _same_for_all(directory, names, error)
                return
            for name in names:
                try:
                    if name in crooked:
                        raise _symbolic_link(f"{directory}/{name}")
                    found = os_stat(name + suffix, dir_fd=base, follow_symlinks=False)
                    if is_link(found.st_mode):
                        raise _symbolic_link(f"{directory}/{name}{suffix}")
                except (FileNotFoundError, NotADirectoryError):
                    yield name, None
                except OSError as error:
                    yield name, _unreadable(f"{directory}/{name}{suffix}", error)
                else:
                    yield name, _facts(found)
        finally:
            os.close(base)

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        """See Store."""
        os_open, os_read, os_close = os.open, os.read, os.close
        try:
            base = self._open_directory(directory)
        except OSError as error:
            yield from _same_for_all(directory, names, error)
            return
        suffix = f"/{leaf}"
        try:
            try:
                crooked = _symbolic_links(base)
            except OSError as error:
                yield from _same_for_all(directory, names, error)
                return
            for name in names:
                try:
                    if name in crooked:
                        raise _symbolic_link(f"{directory}/{name}")
                    if "/" in leaf:
                        with _descend(base, f"{name}{suffix}", directory) as (parent, last):
                            descriptor = os_open(last, _READ, dir_fd=parent)
                    else:
                        descriptor = os_open(name + suffix, _READ, dir_fd=base)
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
            self._check_way(path)
            found = os.lstat(self._at(path))
            if stat.S_ISLNK(found.st_mode):
                raise _symbolic_link(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        return _facts(found)

    def free(self) -> int:
        """See Store."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise _unreadable(self.root, error) from error
        return found.f_bavail * found.f_frsize

    def refresh(self) -> None:
        """See Store: nothing is kept."""

    def replace(self, path: str, data: bytes) -> None:
        """See Store: aside, fsync, re-read and compare, rename, fsync the directory. Nothing is left
        aside (but after a kill: names that end in `.tmp`, which `prepare` removes)."""
        directory = path.rpartition("/")[0]
        if directory:
            self.make_directories(directory)
        aside = f"{path}.{os.urandom(8).hex()}{layout.TEMPORARY}"
        try:
            self.create(aside, data)
            if not self.reads_back(aside, data):
                msg = f"{path}: what was written reads back differently; check the volume"
                raise StorageNotWritable(msg)
            self.rename(aside, path)
        except (StorageNotWritable, StorageUnreadable):
            with contextlib.suppress(StorageNotWritable):
                self.unlink(aside)
            raise
        self.sync_directory(directory)

    def reads_back(self, path: str, data: bytes) -> bool:
        """Whether a file holds exactly this; part by part, for a state can have 256 MB. Raises
        StorageUnreadable."""
        try:
            with self._parent(path) as (parent, name):
                descriptor = os.open(name, _READ, dir_fd=parent)
            try:
                at, view = 0, memoryview(data)
                while part := os.read(descriptor, 1 << 20):
                    if view[at : at + len(part)] != part:
                        return False
                    at += len(part)
                return at == len(data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(path, error) from error

    def make_directories(self, path: str) -> None:
        """See Store."""
        with _writing(path):
            descriptor = os.open(self.root, _WALK & ~os.O_NOFOLLOW)
            try:
                made = ""
                for part in path.split("/"):
                    made = f"{made}/{part}" if made else part
                    below = self._make_directory(descriptor, part, made)
                    os.close(descriptor)
                    descriptor = below
            finally:
                os.close(descriptor)

    def create(self, path: str, data: bytes) -> None:
        """See Store."""
        with _writing(path), self._parent(path) as (parent, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, FILE_MODE, dir_fd=parent)
            try:
                os.fchmod(descriptor, FILE_MODE)
                self._give(descriptor)
                _write_whole(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def overwrite(self, path: str, data: bytes) -> None:
        """See Store."""
        with _writing(path), self._parent(path) as (parent, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, FILE_MODE, dir_fd=parent)
            try:
                _write_whole(descriptor, data.ljust(os.fstat(descriptor).st_size))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        """See Store."""
        with (
            _writing(target),
            self._parent(source) as (source_parent, source_name),
            self._parent(target) as (target_parent, target_name),
        ):
            os.rename(source_name, target_name, src_dir_fd=source_parent, dst_dir_fd=target_parent)

    def unlink(self, path: str) -> bool:
        """See Store."""
        with _writing(path):
            try:
                with self._parent(path) as (parent, name):
                    os.unlink(name, dir_fd=parent)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def rmdir(self, path: str) -> bool:
        """See Store."""
        with _writing(path):
            try:
                with self._parent(path) as (parent, name):
                    os.rmdir(name, dir_fd=parent)
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
            descriptor = self._open_directory(path)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _not_listed(self, base: int, name: str, path: str) -> StorageUnreadable | None:
        """What there is to say of something that is no directory."""
        try:
            if stat.S_ISLNK(os.stat(name, dir_fd=base, follow_symlinks=False).st_mode):
                return _unreadable(path, _symbolic_link(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            return _unreadable(path, error)
        return None

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds a path's last part, and that part."""
        root = os.open(self.root, _WALK & ~os.O_NOFOLLOW)
        try:
            with _descend(root, path, "") as found:
                yield found
        finally:
            os.close(root)

    def _open_directory(self, path: str) -> int:
        """A descriptor for listing and syncing. Raises OSError."""
        if not path:
            return os.open(self.root, _LIST & ~os.O_NOFOLLOW)
        with self._parent(path) as (parent, name):
            return _open_below(parent, name, _LIST, path)

    def _check_way(self, path: str) -> None:
        """That no directory above a path is a symbolic link. Raises OSError.

        Remembers all but the lowest: a million blobs lie in directories of their own, but those in
        a few thousand.
        """
        directory = path.rpartition("/")[0]
        upper = directory.rpartition("/")[0]
        if upper and upper not in self._straight:
            at = 0
            while at != len(upper):
                at = upper.find("/", at + 1)
                at = len(upper) if at < 0 else at
                if upper[:at] not in self._straight:
                    self._check_not_a_link(upper[:at])
            if len(self._straight) > _REMEMBERED:
                self._straight.clear()
            self._straight.add(upper)
        if directory:
            self._check_not_a_link(directory)

    def _check_not_a_link(self, path: str) -> None:
        if stat.S_ISLNK(os.lstat(self._at(path)).st_mode):
            raise _symbolic_link(path)

    def _make_directory(self, parent: int, name: str, path: str) -> int:
        """A descriptor of a directory that is made if it is not there. Raises OSError."""
        try:
            descriptor = _open_below(parent, name, _WALK, path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
                _sync(parent)
        else:
            if not self._is_half_made(descriptor):
                return descriptor
            os.close(descriptor)
        descriptor = _open_below(parent, name, _LIST, path)
        try:
            # A killed run may have got no further than mkdir; then the directory is empty.
            with os.scandir(descriptor) as entries:
                is_empty = next(entries, None) is None
            if is_empty:
                os.fchmod(descriptor, DIRECTORY_MODE)
                self._give(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _is_half_made(self, descriptor: int) -> bool:
        """Whether a directory is this user's and not as we make them."""
        found = os.fstat(descriptor)
        is_given = self._owner is None or (found.st_uid, found.st_gid) == self._owner
        is_open = stat.S_IMODE(found.st_mode) & DIRECTORY_MODE == DIRECTORY_MODE
        return found.st_uid == os.geteuid() and not (is_given and is_open)

    def _give(self, descriptor: int) -> None:
        if self._owner is not None:
            os.fchown(descriptor, *self._owner)


def _sync(parent: int) -> None:
    """fsync a directory of which only the way is open. Raises OSError."""
    descriptor = os.open(".", _LIST, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _descend(base: int, path: str, above: str) -> Iterator[tuple[int, str]]:
    """Go down from a directory's descriptor, part by part, following no symbolic link: the
    descriptor of the last directory, and the last part. `above` is the base's own path."""
    *parts, last = path.split("/")
    descriptor = base
    try:
        way = above
        for part in parts:
            way = f"{way}/{part}" if way else part
            below = _open_below(descriptor, part, _WALK, way)
            if descriptor != base:
                os.close(descriptor)
            descriptor = below
        yield descriptor, last
    finally:
        if descriptor != base:
            os.close(descriptor)


def _open_below(parent: int, name: str, flags: int, path: str) -> int:
    """Open a directory in another. Raises OSError, ELOOP for a symbolic link."""
    try:
        return os.open(name, flags, dir_fd=parent)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise _symbolic_link(path) from None
        raise


def _same_for_all(
    directory: str, names: Iterable[str], error: OSError
) -> Iterator[tuple[str, StorageUnreadable | None]]:
    """The answer for each name in a directory that could not be opened."""
    is_gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    problem = None if is_gone else _unreadable(directory, error)
    return ((name, problem) for name in names)


def _symbolic_links(directory: int) -> frozenset[str]:
    """Symbolic links in a directory. Raises OSError.

    O_NOFOLLOW sees a link at the end of a way only. One more listing costs far less than one more
    open for each of 100,000 names.
    """
    with os.scandir(directory) as entries:
        return frozenset(entry.name for entry in entries if entry.is_symlink())


def _facts(found: os.stat_result) -> Facts:
    return Facts(
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
        stat.S_ISDIR(found.st_mode),
    )


def _symbolic_link(path: str) -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _write_whole(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _unreadable(path: str, error: OSError) -> StorageUnreadable:
    remedy = _REMEDIES.get(error.errno or 0, "check the volume and who may read it, then try again")
    named = _named(path, error)
    is_link = error.errno == errno.ELOOP
    message = f"{named}: {error.strerror or error}; {remedy}"
    return StorageUnreadable(message, named if is_link else None)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn what the system says about a write into our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            msg = f"{path}: {error.strerror}; free some space or enlarge the volume"
            raise StorageFull(msg) from error
        remedy = _REMEDIES.get(error.errno or 0, "check that the volume is writable for this user")
        msg = f"{_named(path, error)}: {error.strerror or error}; {remedy}"
        raise StorageNotWritable(msg) from error


_REMEDIES: dict[int, str] = {
    errno.ELOOP: (
        "this is a symbolic link, and none is followed below the storage's root: put what it leads"
        " to in its place, or mount it there"
    ),
    errno.EISDIR: "a directory lies where a file belongs: move it out of the storage",
    errno.ENOTDIR: "a file lies where a directory belongs: move it out of the storage",
}
"""What to do about what somebody put there; all else is the volume's or a matter of permissions."""


def _named(path: str, error: OSError) -> str:
    """The path to blame: on the way, where a symbolic link was met there."""
    blamed = error.filename if error.errno == errno.ELOOP else None
    return blamed if isinstance(blamed, str) and not path.endswith(f"/{blamed}") else path
