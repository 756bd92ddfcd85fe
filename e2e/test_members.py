"""Two members: pulls go on, without one that fails, through everything that is done to either of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from e2e.scene import Scene, eventually, is_ready
from e2e.test_stories import LONG, OFF, fill
from tests import images as content

pytestmark = pytest.mark.cluster

MEMBERS = 2


def uids(scene: Scene, namespace: str) -> list[str]:
    """Of the members' pods that serve."""
    found = [scene.member_pod(namespace, member=number) for number in range(MEMBERS)]
    return [pod["metadata"]["uid"] for pod in found if pod is not None and is_ready(pod)]


def until_all_serve(scene: Scene, namespace: str, others_than: list[str]) -> None:
    """Every member serves in a pod that is none of these, and the cache says that it is ready."""

    def look() -> bool:
        now = uids(scene, namespace)
        return len(now) == MEMBERS and not set(now) & set(others_than)

    eventually("members in new pods", look, within=240, saw=lambda: scene.status(namespace))
    scene.until_ready(namespace, within=180)


def relabel(scene: Scene, namespace: str) -> None:
    change = {"spec": {"podTemplate": {"labels": {"example.org/round": "two"}}}}
    scene.kubectl.patch("ptc", "cache", namespace, change)


def switch_on(scene: Scene, namespace: str) -> None:
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"gc": LONG}})


@pytest.mark.parametrize("done", [relabel, switch_on], ids=["a rollout", "a migration"])
def test_no_pull_fails_while_both_members_are_restarted_in_turn(
    scene: Scene, namespace: str, done: Callable[[Scene, str], None]
) -> None:
    ours = served_by_two(scene, namespace)
    before = uids(scene, namespace)
    with content.PullLoop(ours, ["team/app0:1", "team/app1:1"]) as loop:
        done(scene, namespace)
        until_all_serve(scene, namespace, others_than=before)
    assert loop.attempts > 20
    assert loop.failures == [], loop.failures
    if done is switch_on:
        for number in range(MEMBERS):
            counted = scene.count(namespace, f"cache-{number}")
            assert counted.uncovered == 0, (number, counted)


def test_no_pull_fails_while_one_members_pod_is_deleted(scene: Scene, namespace: str) -> None:
    ours = served_by_two(scene, namespace)
    gone = scene.member_pod(namespace, member=1)
    assert gone is not None
    with content.PullLoop(ours, ["team/app0:1", "team/app1:1"]) as loop:
        scene.kubectl.delete("pod", "cache-1-0", namespace)
        eventually(
            "the pod's successor",
            lambda: (
                (pod := scene.member_pod(namespace, member=1))
                and pod["metadata"]["uid"] != gone["metadata"]["uid"]
                and is_ready(pod)
            ),
        )
    assert loop.failures == [], loop.failures


def test_a_drain_may_not_evict_both_members(scene: Scene, namespace: str) -> None:
    served_by_two(scene, namespace)
    budget = eventually(
        "the budget to count",
        lambda: (
            (found := scene.kubectl.get("poddisruptionbudget", "cache", namespace))
            and found.get("status", {}).get("currentHealthy") == MEMBERS
            and found
        ),
    )
    assert budget["status"]["disruptionsAllowed"] == 1, budget


def test_scaled_up_and_down_the_claim_stays(scene: Scene, namespace: str) -> None:
    scene.cache(namespace, gc=OFF)
    scene.until_ready(namespace)
    scene.kubectl.run("scale", "ptc", "cache", "-n", namespace, "--replicas=2")
    eventually("the second member", lambda: scene.member_pod(namespace, member=1))
    scene.until_ready(namespace)
    assert scene.status(namespace)["readyReplicas"] == 2
    scene.kubectl.run("scale", "ptc", "cache", "-n", namespace, "--replicas=1")
    eventually(
        "the second member gone", lambda: scene.member_pod(namespace, member=1) is None, within=120
    )
    scene.until_ready(namespace)
    claims = [one["metadata"]["name"] for one in scene.kubectl.list("pvc", namespace)]
    assert {"cache-0", "cache-1"} <= set(claims), claims


def served_by_two(scene: Scene, namespace: str, **spec: Any) -> str:
    """A cache of two members, both filled; its address."""
    scene.cache(namespace, gc=OFF, replicas=MEMBERS, **spec)
    eventually("both members", lambda: len(uids(scene, namespace)) == MEMBERS)
    scene.until_ready(namespace)
    ours = fill(scene, namespace)
    for number in range(MEMBERS):
        member = scene.address(namespace, f"cache-{number}")
        for tag in range(2):
            content.pull(member, f"team/app{tag}", "1")
    return ours
