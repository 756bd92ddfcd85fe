"""`make demo`: distribution issue 4249 and its cure, on a real cluster with real registries, told as it goes.

The same images are pulled through a plain pull-through cache and through ours, both without garbage collection. Then
both are switched: the plain one by hand, ours by one `kubectl patch`. After the ttl the plain one holds all it held;
ours is empty. Exits 1 if ours kept anything that it should not, or if the plain one did not leak.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from e2e import cluster as clusters
from e2e.scene import ROOT, Counted, Scene, StoryFailed, allowed_gap, eventually, parse_time
from tests import images as content

TTL = "1m"
TTL_SECONDS = 60
PLAIN = "plain"
DEMO = "demo"


def main() -> int:
    try:
        return on_a_cluster()
    except (clusters.ClusterError, StoryFailed, content.PullFailed) as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        return 1


def on_a_cluster() -> int:
    started = time.monotonic()
    say(
        "Bringing up a real Kubernetes cluster (the first time its programs are built: about 20 minutes)"
    )
    cluster = clusters.start()
    keep = bool(os.environ.get("KEEP"))
    try:
        say(
            f"Cluster is ready after {time.monotonic() - started:.0f} s. Building images and installing the operator with Helm"
        )
        scene = Scene(cluster)
        try:
            return play(scene)
        finally:
            if not keep:
                scene.leave()
    finally:
        if keep:
            print(
                f"\nThe cluster stays. Use it:  export KUBECONFIG={cluster.kubeconfig}\n"
                "Take it down:              make cluster-down"
            )
        else:
            cluster.stop()


def play(scene: Scene) -> int:
    scene.install_operator()
    operator = scene.operator_image
    say(f"The operator runs (image {operator.reference}, {operator.size / 1e6:.0f} MB)")
    with scene.namespace(DEMO) as namespace:
        upstream = scene.upstream(namespace)
        if not scene.cluster.is_here and not scene.reaches(upstream):
            msg = f"the demo pulls from this machine, and it has no way to {upstream}"
            raise StoryFailed(msg)
        pushed = push_images(upstream)
        say(
            f"1. An upstream registry with {len(pushed)} images: two share a layer, one is an index of two platforms, "
            "one repository lies inside another's path"
        )
        cache = apply_example(scene, namespace)
        plain = scene.plain_cache(
            namespace, PLAIN, f"http://upstream.{namespace}.svc:5000", ttl="0"
        )
        scene.until_ready(namespace, cache)
        ours = scene.address(namespace, cache)
        for base in (plain, ours):
            for repository, tag in pushed:
                content.pull(base, repository, tag)
        before = {PLAIN: scene.count(namespace, PLAIN), cache: scene.count(namespace, f"{cache}-0")}
        say(
            f"2. kubectl apply -f examples/cache.yaml (gc.mode: Disabled); everything was pulled through it: {told(before[cache])}"
        )
        scene.kubectl.run("get", "ptc", "-n", namespace)
        print(scene.kubectl.run("get", "ptc", "-n", namespace, "-o", "wide"))

        say(
            f"3. The control: a plain registry with the same pulls ({told(before[PLAIN])}) gets the same switch by hand: "
            f"proxy.ttl {TTL}, delete enabled, restart"
        )
        scene.plain_cache(namespace, PLAIN, f"http://upstream.{namespace}.svc:5000", ttl=TTL)
        plain_switched = datetime.now(UTC)

        references = [f"{repository}:{tag}" for repository, tag in pushed]
        restart = scene.plain_restart(namespace, cache, ours, references)
        say(
            f"4. kubectl patch ptc {cache}: gc.mode Enabled, ttl {TTL}; a pull loop runs against the cache meanwhile"
        )
        with content.PullLoop(ours, references) as loop:
            scene.kubectl.patch(
                "ptc", cache, namespace, {"spec": {"gc": {"mode": "Enabled", "ttl": TTL}}}
            )
            watch_migration(scene, namespace, cache)
            loop.until_good(60)
        collected_by = eventually(
            "status to say collectedBy",
            lambda: scene.status(namespace, cache)["members"][0].get("gc", {}).get("collectedBy"),
            within=30,
        )
        say(
            f"   The member rolled and serves with GC on. {loop.attempts} pulls meanwhile, {len(loop.failures)} failed, "
            f"longest time without service {loop.longest_gap:.1f} s (a plain restart of the same pod, just before: "
            f"{restart:.1f} s). Everything from before goes by {collected_by}"
        )
        scene.until_canary_passed(namespace, cache)
        say("   The canary passed: an artifact planted at the start was deleted, link and data")
        by = parse_time(str(collected_by))
        wait_until(by.timestamp(), "the ttl to pass for what was cached before the switch")
        ours_empty_in = wait_for_empty(scene, namespace, f"{cache}-0")
        say(
            f"   {ours_empty_in:.0f} s after that time the last byte is gone from our volume (manifest payloads go at the keeper's sweep)"
        )
        wait_until(
            plain_switched.timestamp() + 2 * TTL_SECONDS,
            "twice the ttl to pass for the plain registry, to be fair to it",
        )
        after = {PLAIN: scene.count(namespace, PLAIN), cache: scene.count(namespace, f"{cache}-0")}
        print(table(before, after, cache, loop))
        content.pull(ours, *pushed[0])
        return verdict(before, after, cache, loop, restart)


def push_images(upstream: str) -> list[tuple[str, str]]:
    """The cast: (repository, tag) of everything pushed."""
    shared = content.layer("shared", 3_000_000)
    cast = {
        ("library/alpine", "3"): content.image(
            "alpine", layers=[shared, content.layer("alpine", 1_000_000)]
        ),
        ("library/python", "3.13"): content.image(
            "python",
            layers=[shared, content.layer("python", 5_000_000), content.layer("pip", 200_000)],
        ),
        ("team/app", "1.0"): content.image("app", layers=[content.layer("app", 2_000_000)]),
        ("team/app/worker", "1.0"): content.image(
            "worker", layers=[content.layer("worker", 1_500_000)]
        ),
        ("multi/arch", "latest"): content.index(
            "arch", platforms=["amd64", "arm64"], layer_size=700_000
        ),
    }
    for (repository, tag), image in cast.items():
        content.push(upstream, repository, tag, image)
    return list(cast)


def apply_example(scene: Scene, namespace: str) -> str:
    """`kubectl apply -f examples/cache.yaml`, its upstream pointed at the demo's registry; the cache's name."""
    example = yaml.safe_load(Path(ROOT / "examples" / "cache.yaml").read_text())
    example["metadata"]["namespace"] = namespace
    example["spec"]["upstream"] = scene.upstream_of(namespace)
    example["spec"]["storage"]["volume"] = {"size": "1Gi"}
    example["spec"].setdefault("gc", {})["mode"] = "Disabled"
    scene.kubectl.apply(example)
    return str(example["metadata"]["name"])


def watch_migration(scene: Scene, namespace: str, cache: str) -> None:
    """Prints each change of the column people look at, until the member serves with GC on."""
    seen = ""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        line = scene.kubectl.run("get", "ptc", cache, "-n", namespace, "--no-headers").strip()
        words = " ".join(line.split()[:-1])
        if words != seen:
            print(f"     {line}", flush=True)
            seen = words
        pod = scene.member_pod(namespace, cache)
        mode = (pod or {}).get("metadata", {}).get("annotations", {}).get("pullthrough.dev/gc-mode")
        if (
            mode == "Enabled"
            and scene.condition(namespace, cache, "Migrating").get("status") == "False"
            and scene.condition(namespace, cache, "Ready").get("status") == "True"
        ):
            return
        time.sleep(0.5)
    msg = f"waited 180 s for the migration of {cache}; status: {scene.status(namespace, cache)}"
    raise StoryFailed(msg)


def wait_for_empty(scene: Scene, namespace: str, claim: str) -> float:
    """Seconds until nothing is left of what was cached."""
    start = time.monotonic()
    eventually(
        "an empty volume",
        lambda: _is_empty(scene.count(namespace, claim)),
        within=60,
        every=2,
        saw=lambda: scene.count(namespace, claim),
    )
    return time.monotonic() - start


def _is_empty(counted: Counted) -> bool:
    return counted.artifacts == 0 and counted.blobs == 0


def wait_until(when: float, what: str) -> None:
    left = when - time.time()
    if left > 0:
        say(f"   waiting {left:.0f} s for {what}")
        time.sleep(left)


def told(counted: Counted) -> str:
    return f"{counted.artifacts} artifacts, {counted.bytes / 1e6:.1f} MB in {counted.blobs} blobs, {counted.state or 0} TTL entries"


def table(
    before: dict[str, Counted], after: dict[str, Counted], cache: str, loop: content.PullLoop
) -> str:
    rows = [
        ("", "artifacts before", "after", "bytes before", "after", "tags after", "failed pulls")
    ]
    failed = f"{len(loop.failures)} of {loop.attempts}"
    for title, name, pulls in (("plain registry", PLAIN, "-"), ("PullThroughCache", cache, failed)):
        b, a = before[name], after[name]
        counts = (str(b.artifacts), str(a.artifacts), f"{b.bytes:,}", f"{a.bytes:,}", str(a.tags))
        rows.append((title, *counts, pulls))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n" + "\n".join(lines)


def verdict(
    before: dict[str, Counted],
    after: dict[str, Counted],
    cache: str,
    loop: content.PullLoop,
    restart: float,
) -> int:
    problems = []
    if after[cache].artifacts or after[cache].bytes:
        problems.append(f"our cache kept {told(after[cache])}")
    if after[PLAIN].bytes < before[PLAIN].bytes:
        problems.append("the control did not leak: the plain registry lost bytes")
    if loop.longest_gap > allowed_gap(restart):
        problems.append(
            f"pulls failed for {loop.longest_gap:.0f} s, and a plain restart takes {restart:.0f} s"
        )
    for problem in problems:
        print(f"WRONG: {problem}")
    if not problems:
        say(
            f"The plain registry keeps all of its {after[PLAIN].bytes:,} bytes for ever; ours kept none. "
            f"Failed pulls during the switch: {len(loop.failures)} of {loop.attempts}."
        )
    return 1 if problems else 0


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
