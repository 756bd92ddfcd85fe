"""Stories on a real cluster: as a user would, with something going wrong in the middle, and it ends right.

Each story has its own namespace with its own upstream. "Gone" is counted on the volume itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from e2e import processes
from e2e.scene import Scene, StoryFailed, eventually, is_ready, parse_time
from tests import images as content

pytestmark = pytest.mark.cluster

ON = {"mode": "Enabled", "ttl": "1m"}
LONG = {"mode": "Enabled", "ttl": "1h"}
"""For stories that end with everything covered; that what is covered goes is the first story's claim."""
OFF = {"mode": "Disabled"}
RESTART = 45.0
"""Seconds without service that a restart may take on a busy two-core machine; a plain one is measured in the bench."""


def fill(scene: Scene, namespace: str, cache: str = "cache", tags: int = 2) -> str:
    """Push a few images to the namespace's upstream and pull them through the cache; the cache's address."""
    upstream = scene.address(namespace, "upstream")
    shared = content.layer(f"{namespace}-shared", 300_000)
    for number in range(tags):
        image = content.image(
            f"{namespace}-{number}",
            layers=[shared, content.layer(f"{namespace}-{number}", 200_000)],
        )
        content.push(upstream, f"team/app{number}", "1", image)
    ours = scene.address(namespace, cache)
    for number in range(tags):
        content.pull(ours, f"team/app{number}", "1")
    return ours


def filled_cache(scene: Scene, namespace: str, **spec: Any) -> str:
    scene.cache(namespace, gc=OFF, **spec)
    scene.until_ready(namespace)
    ours = fill(scene, namespace)
    before = scene.count(namespace, "cache-0")
    assert before.artifacts == 2 * (1 + 2 + 1), before
    if spec.get("registry", {}).get("series") != "v2":
        assert not before.state, "with GC off the registry schedules nothing: this is the leak"
    return ours


def turn(scene: Scene, namespace: str, gc: dict[str, str]) -> None:
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"gc": gc}})


def until_gone(scene: Scene, namespace: str, within_after: float = 45) -> None:
    """Everything cached before the switch is gone soon after `collectedBy`."""
    by = parse_time(
        eventually(
            "collectedBy",
            lambda: scene.status(namespace)["members"][0].get("gc", {}).get("collectedBy"),
            within=30,
        )
    )
    time.sleep(max(0.0, by.timestamp() - time.time()))
    eventually(
        "an empty volume",
        lambda: (c := scene.count(namespace, "cache-0")).artifacts == 0 and c.blobs == 0,
        within=within_after,
        every=2,
        saw=lambda: scene.count(namespace, "cache-0"),
    )


def until_covered(scene: Scene, namespace: str, artifacts: int = 8) -> None:
    """Each artifact cached so far has an entry in the file that the registry works by: none would stay for ever."""
    counted = scene.count(namespace, "cache-0")
    assert counted.artifacts == artifacts, counted
    assert counted.uncovered == 0, counted


def until_none_of_ours(scene: Scene, namespace: str, kind: str) -> None:
    selector = "pullthrough.dev/cache=cache"
    eventually(f"no {kind} of ours", lambda: not scene.kubectl.list(kind, namespace, selector))


def job_pods(scene: Scene, namespace: str) -> list[str]:
    return [
        p["metadata"]["uid"]
        for p in scene.kubectl.list("pods", namespace, "app.kubernetes.io/component=migration")
    ]


def member_pods(scene: Scene, namespace: str) -> list[str]:
    return [
        p["metadata"]["uid"]
        for p in scene.kubectl.list("pods", namespace, "app.kubernetes.io/component=registry")
    ]


def test_garbage_collection_is_turned_on_and_no_pull_fails_longer_than_a_restart(
    scene: Scene, namespace: str
) -> None:
    ours = filled_cache(scene, namespace)
    with content.PullLoop(ours, ["team/app0:1", "team/app1:1"]) as loop:
        turn(scene, namespace, ON)
        scene.until_gc(namespace)
        loop.until_good(60)
    assert loop.attempts > 5
    assert loop.longest_gap < RESTART, loop.failures
    until_gone(scene, namespace)
    content.pull(ours, "team/app0", "1")
    assert scene.jobs(namespace) == []


@pytest.mark.parametrize("phase", ["asked", "job", "rolling", "preparing"])
def test_the_operator_killed_in_a_phase_of_the_migration_changes_nothing_of_its_end(
    scene: Scene, namespace: str, phase: str
) -> None:
    filled_cache(scene, namespace)
    moments: dict[str, Callable[[], object]] = {
        "asked": lambda: True,
        "job": lambda: scene.jobs(namespace),
        "rolling": lambda: _template_mode(scene, namespace) == "Enabled",
        "preparing": lambda: (
            (pod := scene.member_pod(namespace))
            and pod["metadata"]["annotations"].get("pullthrough.dev/gc-mode") == "Enabled"
        ),
    }
    turn(scene, namespace, LONG)
    eventually(f"the phase {phase}", moments[phase], every=0.1)
    scene.kill_operator()
    scene.until_gc(namespace)
    until_covered(scene, namespace)


def test_the_jobs_pod_killed_is_another_attempt_and_costs_no_pull(
    scene: Scene, namespace: str
) -> None:
    ours = filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    processes.catch(lambda: job_pods(scene, namespace), "migrate", signal.SIGKILL)
    content.pull(ours, "team/app0", "1")
    scene.until_gc(namespace)
    until_covered(scene, namespace)


def test_the_members_pod_deleted_while_the_job_hangs_is_back_as_after_a_plain_restart(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    processes.catch(lambda: job_pods(scene, namespace), "migrate", signal.SIGSTOP)
    start = time.monotonic()
    scene.kubectl.delete("pod", "cache-0-0", namespace)
    eventually(
        "the member to serve again", lambda: (pod := scene.member_pod(namespace)) and is_ready(pod)
    )
    assert time.monotonic() - start < RESTART
    scene.until_gc(namespace)
    until_covered(scene, namespace)


def test_prepare_killed_runs_again_and_ends_the_same(scene: Scene, namespace: str) -> None:
    filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    eventually("the roll", lambda: _template_mode(scene, namespace) == "Enabled", every=0.1)
    processes.catch(lambda: member_pods(scene, namespace), "prepare", signal.SIGKILL)
    scene.until_gc(namespace)
    until_covered(scene, namespace)


def test_the_registry_killed_right_after_a_pull_leaves_nothing_for_ever(
    scene: Scene, namespace: str
) -> None:
    scene.cache(namespace, gc=ON)
    scene.until_ready(namespace)
    fill(scene, namespace)
    pod = scene.member_pod(namespace)
    assert pod
    processes.catch(lambda: [pod["metadata"]["uid"]], "serve", signal.SIGKILL)
    eventually(
        "the registry restarted in place",
        lambda: (
            (p := scene.member_pod(namespace))
            and is_ready(p)
            and any(c["restartCount"] for c in p["status"]["containerStatuses"])
        ),
    )
    assert (scene.member_pod(namespace) or {})["metadata"]["uid"] == pod["metadata"]["uid"]
    eventually(
        "an empty volume",
        lambda: (c := scene.count(namespace, "cache-0")).artifacts == 0 and c.blobs == 0,
        within=150,
        every=3,
        saw=lambda: scene.count(namespace, "cache-0"),
    )


def test_turned_on_off_on_within_seconds_ends_on(scene: Scene, namespace: str) -> None:
    ours = filled_cache(scene, namespace)
    for gc in (LONG, OFF, LONG, OFF, LONG):
        turn(scene, namespace, gc)
        time.sleep(1)
    scene.until_gc(namespace)
    content.pull(ours, "team/app0", "1")
    until_covered(scene, namespace)


def test_turned_off_and_on_again_finds_what_was_cached_meanwhile(
    scene: Scene, namespace: str
) -> None:
    scene.cache(namespace, gc={"mode": "Enabled", "ttl": "1h"})
    scene.until_ready(namespace)
    fill(scene, namespace)
    turn(scene, namespace, OFF)
    scene.until_gc(namespace, mode="Disabled")
    assert not scene.count(namespace, "cache-0").state
    turn(scene, namespace, LONG)
    scene.until_gc(namespace)
    until_covered(scene, namespace)


def test_suspended_in_the_middle_nothing_moves_until_it_is_resumed(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"suspend": True}})
    turn(scene, namespace, LONG)
    time.sleep(8)
    assert scene.jobs(namespace) == []
    assert _template_mode(scene, namespace) == "Disabled"
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"suspend": False}})
    scene.until_gc(namespace)


def test_a_cache_made_again_with_gc_on_over_its_retained_claim_collects_what_lies_there(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    scene.kubectl.delete("ptc", "cache", namespace)
    eventually("the pod to be gone", lambda: scene.member_pod(namespace) is None)
    assert scene.kubectl.get("pvc", "cache-0", namespace), "retained"
    scene.cache(namespace, gc=LONG)
    scene.until_ready(namespace)
    until_covered(scene, namespace)


def test_a_claim_of_another_upstream_is_refused(scene: Scene, namespace: str) -> None:
    filled_cache(scene, namespace)
    before = scene.count(namespace, "cache-0")
    scene.kubectl.delete("ptc", "cache", namespace)
    eventually("the pod to be gone", lambda: scene.member_pod(namespace) is None)
    scene.upstream(namespace, "other")
    scene.cache(namespace, upstream=scene.upstream_of(namespace, "other"), gc=ON)
    stalled = scene.until_condition(namespace, "cache", "Stalled", "True")
    assert stalled["reason"] == "StorageBelongsToOtherUpstream"
    assert scene.count(namespace, "cache-0") == before


def test_somebody_elses_object_of_our_name_is_refused_and_untouched(
    scene: Scene, namespace: str
) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "cache", "namespace": namespace, "labels": {"theirs": "yes"}},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    }
    scene.kubectl.apply(theirs)
    version = (scene.kubectl.get("service", "cache", namespace) or {})["metadata"][
        "resourceVersion"
    ]
    scene.cache(namespace, gc=ON)
    stalled = scene.until_condition(namespace, "cache", "Stalled", "True")
    assert stalled["reason"] == "NameConflict"
    assert "Service" in stalled["message"] and "cache" in stalled["message"]
    assert (scene.kubectl.get("service", "cache", namespace) or {})["metadata"][
        "resourceVersion"
    ] == version
    scene.kubectl.delete("service", "cache", namespace)
    scene.until_ready(namespace, within=180)


def test_a_bad_image_is_said_and_its_correction_cures_it(scene: Scene, namespace: str) -> None:
    ours = filled_cache(scene, namespace)
    scene.kubectl.patch(
        "ptc", "cache", namespace, {"spec": {"registry": {"image": "localhost/no-such-image:1"}}}
    )
    eventually(
        "Ready=False to say why",
        lambda: (
            "image" in scene.condition(namespace, "cache", "Ready").get("message", "").lower()
            and scene.condition(namespace, "cache", "Ready")["status"] == "False"
        ),
        saw=lambda: scene.status(namespace),
    )
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"registry": {"image": None}}})
    scene.until_ready(namespace)
    content.pull(ours, "team/app0", "1")


@pytest.mark.parametrize("kind_name", ["service/cache", "service/cache-0", "statefulset/cache-0"])
def test_a_child_deleted_by_hand_comes_back(scene: Scene, namespace: str, kind_name: str) -> None:
    scene.cache(namespace, gc=OFF)
    scene.until_ready(namespace)
    kind, name = kind_name.split("/")
    uid = (scene.kubectl.get(kind, name, namespace) or {})["metadata"]["uid"]
    scene.kubectl.delete(kind, name, namespace)
    eventually(
        "another one",
        lambda: (
            (found := scene.kubectl.get(kind, name, namespace)) and found["metadata"]["uid"] != uid
        ),
    )
    scene.until_ready(namespace)


def test_deleting_the_cache_leaves_its_claim_or_nothing_as_it_says(
    scene: Scene, namespace: str
) -> None:
    scene.cache(namespace, gc=OFF)
    scene.until_ready(namespace)
    scene.kubectl.patch(
        "ptc",
        "cache",
        namespace,
        {"spec": {"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}}},
    )
    eventually(
        "the claim to belong to the cache",
        lambda: (scene.kubectl.get("pvc", "cache-0", namespace) or {})["metadata"].get(
            "ownerReferences"
        ),
    )
    scene.kubectl.delete("ptc", "cache", namespace)
    for kind in ("statefulset", "service", "configmap", "pvc", "pod"):
        until_none_of_ours(scene, namespace, kind)


def test_the_upstream_down_a_2_8_registry_is_not_rolled(scene: Scene, namespace: str) -> None:
    ours = filled_cache(scene, namespace, registry={"series": "v2"})
    scene.kubectl.run("scale", "deployment/upstream", "-n", namespace, "--replicas=0")
    eventually(
        "the upstream to be gone", lambda: not scene.kubectl.list("pods", namespace, "app=upstream")
    )
    time.sleep(12)
    uid = (scene.member_pod(namespace) or {})["metadata"]["uid"]
    turn(scene, namespace, {"mode": "Enabled", "ttl": "168h"})
    eventually(
        "the reason in Migrating",
        lambda: (
            "upstream"
            in scene.condition(namespace, "cache", "Migrating").get("message", "").lower()
        ),
        saw=lambda: scene.status(namespace),
    )
    time.sleep(10)
    assert (scene.member_pod(namespace) or {})["metadata"]["uid"] == uid, "rolled into an outage"
    content.pull(ours, "team/app0", "1")
    scene.kubectl.run("scale", "deployment/upstream", "-n", namespace, "--replicas=1")
    scene.until_gc(namespace)
    state = scene.count(namespace, "cache-0").state
    assert state and state >= 8


def _template_mode(scene: Scene, namespace: str) -> str | None:
    found = scene.kubectl.get("statefulset", "cache-0", namespace)
    if found is None:
        msg = "the member's StatefulSet is gone"
        raise StoryFailed(msg)
    mode: str | None = found["spec"]["template"]["metadata"]["annotations"].get(
        "pullthrough.dev/gc-mode"
    )
    return mode
