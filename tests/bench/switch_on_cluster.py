"""What turning garbage collection on costs on a real cluster: the seconds in which no pull succeeds.

    python -m tests.bench.switch_on_cluster [--artifacts 100 100000] [--rounds 3] [--only warm|cold] [--json FILE]

Needs root and what `make demo` needs. Real kubelet, registry and operator; two caches of the same content, because the
access mode of a claim is for ever: one whose volume admits the migration Job, one (ReadWriteOncePod) where `prepare` does it
all. Three ways take turns, in one run, with a warm and a cold page cache:

- a plain restart with GC off: the pod is deleted
- gc.mode from Disabled to Enabled, with the Job
- the same by `prepare` alone

A client pulls an image about every 100 ms all the while. Cold: the kernel's caches are dropped as soon as the old pod is told
to end, seconds before the next `prepare` begins; for the Job's way that is the worst case, as the Job has just read
everything. Ending one pod and starting the next is the same for all three; what differs is in `prepare` and after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster import Unavailable, cgroups, local, node
from e2e.scene import Scene, StoryFailed, content, eventually, is_ready
from pullthrough.models import constants
from tests.bench.containers import Containers
from tests.bench.reseed import grow

ON = {"mode": "Enabled", "ttl": "168h"}
OFF = {"mode": "Disabled"}
IMAGE = ("team/app", "1")
MEMORY = "1Gi"
"""More than the Job's gate asks for at 100,000 entries (2.4 KiB each and 25 MiB)."""
SERVES_AGAIN = 300.0
"""Seconds in which a pull must succeed again."""
SETTLES = 300.0
JOB = 600.0


class Way(enum.Enum):
    """What is done to the member."""

    RESTART = "plain restart"
    WITH_JOB = "switch with the Job"
    ALONE = "switch by prepare alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One restart of a member. Seconds."""

    artifacts: int
    cold: bool
    way: Way
    without_service: float
    """From the last good pull before to the first one after."""
    prepare: float
    serving: float
    """From the end of `prepare` to that first good pull."""
    added: int
    """Entries that `prepare` found missing and wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A cache's only member, filled."""

    scene: Scene
    namespace: str
    cache: str
    artifacts: int

    @property
    def address(self) -> str:
        return self.scene.address(self.namespace, self.cache)

    def pod(self) -> dict[str, Any]:
        found = self.scene.member_pod(self.namespace, self.cache)
        if found is None:
            msg = f"{self.namespace}/{self.cache} has no pod"
            raise StoryFailed(msg)
        return found

    def volume(self) -> Path:
        path = self.scene.cluster.volume_path(self.namespace, f"{self.cache}-0")
        if path is None:
            msg = f"{self.namespace}/{self.cache} has no volume"
            raise StoryFailed(msg)
        return path

    def patch(self, gc: dict[str, str]) -> None:
        self.scene.kubectl.patch("ptc", self.cache, self.namespace, {"spec": {"gc": gc}})

    def settle(self) -> None:
        """Wait until GC is off and nothing is under way, the keeper's first walk over the storage neither."""
        self.scene.until_gc(self.namespace, self.cache, OFF["mode"], within=SETTLES)
        report = f"http://{self.pod()['status']['podIP']}:{constants.KEEPER_PORT}/report"

        def swept() -> dict[str, Any] | None:
            with urllib.request.urlopen(report, timeout=10) as answer:
                said: dict[str, Any] = json.load(answer)
            return said if said["lastSweep"] else None

        said = eventually("the keeper's first sweep", swept, within=SETTLES)
        if said["artifacts"] < self.artifacts:
            msg = (
                f"{self.cache} is to hold {self.artifacts} artifacts and holds {said['artifacts']}"
            )
            raise StoryFailed(msg)


def main(argv: list[str]) -> int:
    """Bring a cluster up, measure, print a table; a machine that cannot says why."""
    parser = argparse.ArgumentParser(prog="tests.bench.switch_on_cluster")
    parser.add_argument("--artifacts", type=int, nargs="*", default=[100, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["warm", "cold"], help="the page cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single sample")
    given = parser.parse_args(argv)
    colds = [cold for cold in (False, True) if given.only != ("warm" if cold else "cold")]
    try:
        cluster = local.start()
    except Unavailable as why:
        print(f"the switch on a cluster is not measured: {why}")
        return 0
    samples: list[Sample] = []
    try:
        cgroups.prefer(cluster.slot)
        scene = Scene(cluster)
        # Nothing but the first sweep of a keeper may happen beside what is measured: no short ages here.
        scene.install_operator(keeper={})
        with Containers(node.socket(cluster.slot)) as containers:
            for artifacts in given.artifacts:
                for sample in _one_size(scene, containers, artifacts, given.rounds, colds):
                    print(told(sample), flush=True)
                    samples.append(sample)
    finally:
        # First, as removing some 100,000 files takes minutes; and also where only a part was measured.
        print(table(samples), flush=True)
        if given.json is not None:
            rows = [{**dataclasses.asdict(each), "way": each.way.value} for each in samples]
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
        cluster.stop()
    return 0


def told(sample: Sample) -> str:
    """One sample as a sentence."""
    return (
        f"{sample.artifacts} artifacts, {'cold' if sample.cold else 'warm'}, {sample.way.value}: "
        f"{sample.without_service:.1f} s without service, {sample.prepare:.2f} s of it in prepare, which added "
        f"{sample.added} entries, then {sample.serving:.1f} s"
    )


def table(samples: Sequence[Sample]) -> str:
    """Medians, and how many times a plain restart's they are."""
    lines = [
        f"{'artifacts':>9} {'cache':>5}  {'way':24} {'without service':>15} {'x restart':>9} {'prepare':>8} {'then':>6}"
    ]
    for artifacts, cold in sorted({(each.artifacts, each.cold) for each in samples}):
        of_kind = [each for each in samples if (each.artifacts, each.cold) == (artifacts, cold)]
        if {each.way for each in of_kind} != set(Way):
            continue
        restart = _median(of_kind, Way.RESTART, "without_service")
        for way in Way:
            gap = _median(of_kind, way, "without_service")
            lines.append(
                f"{artifacts:9} {'cold' if cold else 'warm':>5}  {way.value:24} {gap:15.1f} {gap / restart:9.2f}"
                f" {_median(of_kind, way, 'prepare'):8.2f} {_median(of_kind, way, 'serving'):6.1f}"
            )
    return "\n".join(lines)


def _median(samples: Sequence[Sample], way: Way, value: str) -> float:
    values: list[float] = [getattr(each, value) for each in samples if each.way is way]
    return statistics.median(values)


def _one_size(
    scene: Scene, containers: Containers, artifacts: int, rounds: int, colds: Sequence[bool]
) -> Iterator[Sample]:
    with scene.namespace(f"bench-{artifacts}") as namespace:
        upstream = scene.upstream(namespace)
        layers = [content.layer("app", 10_000)]
        content.push(upstream, *IMAGE, content.image("app", layers=layers))
        with_job = _filled(scene, namespace, "job", "ReadWriteOnce", artifacts)
        alone = _filled(scene, namespace, "alone", "ReadWriteOncePod", artifacts)
        members = {Way.RESTART: with_job, Way.WITH_JOB: with_job, Way.ALONE: alone}
        # Warm ones first: after a cold one, reading 100,000 artifacts back into the page cache takes minutes.
        for cold in colds:
            for _ in range(rounds):
                for way, member in members.items():
                    # Both: the one that was turned off a moment ago must not roll beside the other's measurement.
                    with_job.settle()
                    alone.settle()
                    yield _measure(member, containers, way, cold=cold)


def _filled(scene: Scene, namespace: str, cache: str, access: str, artifacts: int) -> Member:
    """A cache with GC off; its content is written straight into the volume, as pulling 100,000 would take hours."""
    scene.cache(
        namespace,
        cache,
        gc=OFF,
        storage={"volume": {"size": "10Gi", "accessMode": access}},
        podTemplate={"resources": {"limits": {"memory": MEMORY}}},
    )
    scene.until_ready(namespace, cache)
    member = Member(scene=scene, namespace=namespace, cache=cache, artifacts=artifacts)
    grow(member.volume(), artifacts)
    owner = f"{constants.RUN_AS}:{constants.RUN_AS}"
    subprocess.run(["chown", "-R", owner, str(member.volume() / "docker")], check=True, timeout=300)
    content.pull(member.address, *IMAGE)
    # The keeper's next sweep is minutes away; a new one begins with one, and tells whether all is there.
    before = member.pod()
    scene.kubectl.delete("pod", before["metadata"]["name"], namespace)
    eventually("the filled member to be ready", lambda: _next_pod(member, before), within=SETTLES)
    return member


def _measure(member: Member, containers: Containers, way: Way, *, cold: bool) -> Sample:
    """Once, beginning with settled members with GC off; GC is being turned off again at the end."""
    if not cold:
        _read_all(member.volume())
    before = member.pod()
    registry = _container_id(before, constants.CONTAINER_REGISTRY)
    os.sync()  # what is still to be written cannot be dropped later
    if cold:
        # Of millions of names and inodes this takes longer than a pod takes to end; the second time it is quick.
        _drop_caches()
    with content.PullLoop(member.address, [":".join(IMAGE)], timeout=3) as loop:
        loop.until_good(60)
        if way is Way.RESTART:
            name = before["metadata"]["name"]
            member.scene.kubectl.delete("pod", name, member.namespace, "--wait=false")
        else:
            member.patch(ON)
        eventually(
            "the pod to be told to end", lambda: _is_ending(member, before), within=JOB, every=0.2
        )
        if cold:
            _drop_caches()
        dropped = time.time()
        stopped = eventually(
            "the registry's end", lambda: containers.ended.get(registry), within=90, every=0.1
        )
        served = eventually(
            "a good pull after it",
            lambda: loop.gap_ended if (loop.gap_ended or 0.0) > stopped else None,
            within=SERVES_AGAIN,
            every=0.1,
            saw=lambda: loop.failures[-1:],
        )
    after = eventually("the next pod to be ready", lambda: _next_pod(member, before), within=60)
    prepare = _container_id(after, constants.CONTAINER_PREPARE)
    started, ended = containers.started[prepare], containers.ended[prepare]
    if dropped > started:
        msg = f"prepare began {dropped - started:.1f} s before the caches were dropped"
        raise StoryFailed(msg)
    sample = Sample(
        artifacts=member.artifacts,
        cold=cold,
        way=way,
        without_service=loop.longest_gap,
        prepare=ended - started,
        serving=served - ended,
        added=int(_said_by_prepare(after)["added"]),
    )
    _check(sample)
    if way is not Way.RESTART:
        member.scene.until_gc(member.namespace, member.cache, ON["mode"], within=SETTLES)
        member.patch(OFF)
    return sample


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _read_all(folder: Path) -> None:
    """Every name and every byte, into the page cache."""
    # Several at once: a disk answers many small reads beside each other much faster than one after the other.
    each = 'find "$0" -type f -print0 | xargs -0 -r -n 500 -P 16 cat >/dev/null'
    subprocess.run(["sh", "-c", each, str(folder)], check=True, timeout=600)


def _is_ending(member: Member, before: dict[str, Any]) -> bool:
    pod = member.scene.member_pod(member.namespace, member.cache)
    is_same = pod is not None and pod["metadata"]["uid"] == before["metadata"]["uid"]
    return pod is None or not is_same or "deletionTimestamp" in pod["metadata"]


def _next_pod(member: Member, before: dict[str, Any]) -> dict[str, Any] | None:
    pod = member.scene.member_pod(member.namespace, member.cache)
    is_next = pod is not None and pod["metadata"]["uid"] != before["metadata"]["uid"]
    return pod if pod is not None and is_next and is_ready(pod) else None


def _status(pod: dict[str, Any], container: str) -> dict[str, Any]:
    status = pod["status"]
    found: list[dict[str, Any]] = [*status["initContainerStatuses"], *status["containerStatuses"]]
    return next(each for each in found if each["name"] == container)


def _container_id(pod: dict[str, Any], container: str) -> str:
    return str(_status(pod, container)["containerID"]).removeprefix("containerd://")


def _said_by_prepare(pod: dict[str, Any]) -> dict[str, Any]:
    message = _status(pod, constants.CONTAINER_PREPARE)["state"]["terminated"]["message"]
    said: dict[str, Any] = json.loads(message)
    return said


def _check(sample: Sample) -> None:
    """That the way was the one it was to be: `prepare` alone adds everything, after the Job (next to) nothing."""
    does_all = sample.added >= sample.artifacts
    does_nothing = sample.added < sample.artifacts / 10
    if not (does_all if sample.way is Way.ALONE else does_nothing):
        msg = f"{sample.way.value}: prepare added {sample.added} of {sample.artifacts} entries"
        raise StoryFailed(msg)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
