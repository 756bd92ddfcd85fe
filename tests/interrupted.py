"""Programs that are killed, or refused something, at one system call after the other.

A program runs in a forked process of its own, in which the functions of `os` that change a file
system count themselves. At a chosen call the process sends itself SIGKILL (before it, or with half
of a write written), or gets an error from the call as from the system. The program's own code is as
it is: nothing in it knows of this. What changes files by another way than `os` is seen by an audit
hook and fails the run, so that no write can escape the count.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = [
    *("mkdir", "write", "fchmod", "fchown", "chmod", "chown", "rename", "replace", "link"),
    *("symlink", "unlink", "remove", "rmdir", "truncate", "ftruncate", "utime"),
]
"""Functions of `os` that change something, besides `open` for writing."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AUDITED = {f"os.{name}" for name in CHANGES} | {"shutil.rmtree", "shutil.move"}

Program = Callable[[], object]
Before = Callable[[int, str], None]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a process ended: what its program returned or raised, or None where it was killed."""

    calls: list[str]
    """The changes that it made, by name; not known of one that was killed."""
    was_killed: bool
    returned: Any = None
    raised: str = ""
    """The error's type and message; a traceback where it was none of the program's own."""


def run(program: Program, *, user: int | None = None) -> Ending:
    """Run to the end, counting; with `user` (only for root) as that user and no other group."""

    def demoted() -> object:
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        return program()

    return _fork(demoted, lambda number, name: None)


def run_killed(program: Program, at: int, *, half: bool = False) -> Ending:
    """Run until the change number `at`; with `half`, of a write the first half is done."""

    def die(number: int, name: str) -> None:
        if number == at:
            if half and name == "write":
                raise _Half
            os.kill(os.getpid(), signal.SIGKILL)

    return _fork(program, die)


def run_refused(program: Program, at: int, code: int, *, ever_after: bool) -> Ending:
    """Run with the change number `at` (and with `ever_after` each later one that takes space, or
    for EROFS any) refused with this errno."""
    harmless = {"unlink", "remove", "rmdir", "rename"} if code == errno.ENOSPC else set()

    def refuse(number: int, name: str) -> None:
        if (number == at or (ever_after and number > at)) and name not in harmless:
            raise OSError(code, os.strerror(code))

    return _fork(program, refuse)


class _Half(Exception):
    """Do half of this write, then die."""


def _fork(program: Program, before: Before) -> Ending:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(program, before, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Ending(calls=[], was_killed=True)
    ending = pickle.loads(told)
    assert isinstance(ending, Ending)
    if "escaped" in ending.raised:
        raise AssertionError(ending.raised)
    return ending


def _child(program: Program, before: Before, pipe: int) -> None:
    from pullthrough.storage.errors import StorageError

    calls: list[str] = []
    tell = os.write
    try:
        devnull = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(devnull, standard)
        _install(calls, before)
        try:
            ending = Ending(calls=calls, was_killed=False, returned=program())
        except StorageError as error:
            raised = f"{type(error).__name__}: {error.message}"
            ending = Ending(calls=calls, was_killed=False, raised=raised)
    except BaseException:
        raised = "Traceback: " + traceback.format_exc()
        ending = Ending(calls=calls, was_killed=False, raised=raised)
    rest = memoryview(pickle.dumps(ending))
    while rest:
        rest = rest[tell(pipe, rest) :]
    os._exit(0)


def _install(calls: list[str], before: Before) -> None:
    depth = [0]

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            depth[0] += 1
            try:
                calls.append(name)
                before(len(calls) - 1, name)
                return real(*arguments, **options)
            except _Half:
                descriptor, data = arguments
                real(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                depth[0] -= 1

        return call

    for name in CHANGES:
        setattr(os, name, counted(name, getattr(os, name)))
    real_open = os.open
    counted_open = counted("open", real_open)

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> Any:
        chosen = counted_open if flags & WRITING else real_open
        return chosen(path, flags, *arguments, **options)

    os.open = opened

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (is_write or event in AUDITED) and not depth[0]:
            msg = f"a change escaped the count: {event} {arguments}"
            raise AssertionError(msg)

    sys.addaudithook(watch)


@contextmanager
def in_memory() -> Iterator[Path]:
    """A directory on a memory file system where there is one: hundreds of runs fsync there."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = Path(tempfile.mkdtemp(dir=shared, prefix="pullthrough-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def copy(source: Path, target: Path) -> Path:
    """A copy with times, modes, owners and links."""
    shutil.copytree(source, target, symlinks=True, copy_function=_copy_file)
    if os.geteuid() == 0:
        for path in [source, *source.rglob("*")]:
            facts = path.lstat()
            os.lchown(target / path.relative_to(source), facts.st_uid, facts.st_gid)
    return target


def _copy_file(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)


def everything(root: Path) -> dict[str, tuple[str, str, bytes | str | None]]:
    """All that lies there: mode, owner, and a file's bytes or a link's target."""
    found: dict[str, tuple[str, str, bytes | str | None]] = {}
    for path in sorted([root, *root.rglob("*")]):
        facts = path.lstat()
        content: bytes | str | None = None
        if stat.S_ISLNK(facts.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(facts.st_mode):
            content = path.read_bytes()
        owner = f"{facts.st_uid}:{facts.st_gid}"
        found[str(path.relative_to(root))] = (stat.filemode(facts.st_mode), owner, content)
    return found
