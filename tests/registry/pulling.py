"""Pulls beside removals: whole images, single blobs, and repositories that are new. Each body is checked."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests import images
from tests.registry.servers import CAST, ROOT

NEW = 60
"""Repositories that appear, one after the other, during a run."""


class HitLoop(images.PullLoop):
    """Single blobs instead of whole images: a hit is at risk for some 100 us between its stat and its open, and only many
    hits find that."""

    def __init__(self, base_url: str, blobs: Sequence[str], deadline: float) -> None:
        super().__init__(base_url, ["a:b"], pause=0, deadline=deadline, retry=True)
        self._blobs = random.Random(id(self)).sample(list(blobs), len(blobs))

    def _attempt(self, repository: str, tag: str) -> images.Failure | None:
        where, _, digest = self._blobs[self.attempts % len(self._blobs)].partition("@")
        try:
            images.fetch_blob(self._base_url, where.rpartition(":")[0], digest, timeout=10)
        except images.PullFailed as error:
            return images.Failure(
                time=datetime.now(UTC),
                reference=f"{where}@{digest}",
                message=str(error),
                wrong_content=error.wrong_content,
                cut=error.cut,
            )
        return None


def small_blobs() -> list[str]:
    """Configs of the cast, as `repository:tag@digest`."""
    return [
        f"{repository}:{tag}@{digest}"
        for (repository, tag), image in CAST.items()
        for digest, content in image.blobs.items()
        if len(content) < 1000
    ]


@dataclass(kw_only=True)
class Pulled:
    """What came of it."""

    attempts: dict[str, int] = field(default_factory=dict)
    failures: list[images.Failure] = field(default_factory=list)
    failed_retries: list[images.Failure] = field(default_factory=list)
    removed: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def wrong_bodies(self) -> list[str]:
        """Wrong bytes, or fewer than promised under a good status."""
        return [str(f) for f in (*self.failures, *self.failed_retries) if f.wrong_content or f.cut]


def push_new(upstream_url: str) -> None:
    """Images in repositories that nobody has pulled yet, all with layers of the cast."""
    cast = list(CAST.values())
    for number in range(NEW):
        images.push(upstream_url, f"new/n{number}", "1", cast[number % len(cast)])


def pull_beside(cache_url: str, storage: Path, seconds: float, *modes: str) -> Pulled:
    """Pull for so long while `hammer` removes in each of these ways."""
    blobs, data = small_blobs(), []
    if "reckless" in modes:
        # Few, so that many requests meet a removal.
        del blobs[2:]
        for blob in blobs:
            digits = blob.rpartition(":")[2]
            where = storage / "docker/registry/v2/blobs/sha256"
            data.append(str(where / digits[:2] / digits / "data"))
    with contextlib.ExitStack() as running:
        whole = [f"{repository}:{tag}" for repository, tag in CAST]
        new = [f"new/n{number}:1" for number in range(NEW)]
        loops: dict[str, Sequence[images.PullLoop]] = {
            "images": [_loop(cache_url, whole, 0, seconds)],
            # Each twice: when it is new, and when it has been there for a while.
            "new repositories": [_loop(cache_url, new, seconds / NEW / 2, seconds)],
            "blobs": [HitLoop(cache_url, blobs, seconds + 60) for _ in range(3)],
        }
        if data:
            # Nothing shall keep the requests for them waiting.
            loops = {"blobs": loops["blobs"]}
        for loop in (one for several in loops.values() for one in several):
            running.enter_context(loop)
        removed = _hammer(storage, seconds, modes, data)
    every = [one for several in loops.values() for one in several]
    return Pulled(
        attempts={name: sum(one.attempts for one in several) for name, several in loops.items()},
        failures=[failure for one in every for failure in one.failures],
        failed_retries=[failure for one in every for failure in one.failed_retries],
        removed=removed,
    )


def _loop(cache_url: str, references: list[str], pause: float, seconds: float) -> images.PullLoop:
    return images.PullLoop(cache_url, references, pause=pause, retry=True, deadline=seconds + 60)


def _hammer(
    storage: Path, seconds: float, modes: tuple[str, ...], data: list[str]
) -> dict[str, dict[str, int]]:
    """See hammer.py."""
    with contextlib.ExitStack() as running:
        processes = {
            mode: running.enter_context(_process(storage, seconds, mode, data)) for mode in modes
        }
        told: Mapping[str, bytes] = {
            mode: process.communicate(timeout=seconds + 60)[0]
            for mode, process in processes.items()
        }
        for mode, process in processes.items():
            assert process.returncode == 0, _log(storage, mode).read_text()[-3000:]
    return {mode: json.loads(out) for mode, out in told.items()}


def _log(storage: Path, mode: str) -> Path:
    return storage.parent / f"hammer-{mode}.log"


@contextlib.contextmanager
def _process(
    storage: Path, seconds: float, mode: str, data: list[str]
) -> Iterator[subprocess.Popen[bytes]]:
    with _log(storage, mode).open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.registry.hammer",
                str(storage),
                str(seconds),
                mode,
                *data,
            ],
            env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)
        if process.stdout is not None:
            process.stdout.close()
