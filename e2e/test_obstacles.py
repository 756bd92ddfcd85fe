"""What stands in the way from outside is said in a condition, and its end is enough: nobody has to ask again."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from e2e import processes
from e2e.scene import Scene, eventually, is_ready
from e2e.test_stories import LONG, filled_cache, restarts, turn, until_covered

pytestmark = pytest.mark.cluster

IDLE = ("python3", "-c", "import time; time.sleep(3600)")


def look_again(scene: Scene, namespace: str) -> None:
    """The operator's own next look may be minutes away."""
    change = {"metadata": {"annotations": {"example.org/looked": str(time.time())}}}
    scene.kubectl.patch("ptc", "cache", namespace, change)


def quota(namespace: str, pods: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": namespace},
        "spec": {"hard": {"pods": str(pods)}},
    }


def test_a_quota_that_would_refuse_the_jobs_pod_is_said_before_a_job_is_made(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    there = len(scene.kubectl.list("pods", namespace))
    scene.kubectl.apply(quota(namespace, there))
    eventually(
        "the quota to count",
        lambda: (
            (scene.kubectl.get("resourcequota", "small", namespace) or {})
            .get("status", {})
            .get("used")
        ),
    )
    turn(scene, namespace, LONG)
    said = scene.until_condition(
        namespace, "cache", "Migrating", "True", reason="MigrationRetrying"
    )
    assert "exceeded quota: small" in said["message"], said
    assert scene.jobs(namespace) == []
    assert scene.condition(namespace, "cache", "Available")["status"] == "True"
    scene.kubectl.delete("resourcequota", "small", namespace)
    scene.until_gc(namespace, within=300)
    until_covered(scene, namespace)


def test_gc_is_not_turned_on_beside_somebodys_pod_that_can_write(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    intruder = scene.pod_with(namespace, "intruder", "cache-0", *IDLE, read_only=False)
    scene.kubectl.apply(intruder)
    turn(scene, namespace, LONG)
    said = scene.until_condition(namespace, "cache", "Stalled", "True", reason="StorageInUse")
    assert "intruder" in said["message"] and "cache-0" in said["message"], said
    assert scene.condition(namespace, "cache", "Available")["status"] == "True"
    scene.kubectl.delete("pod", "intruder", namespace)
    scene.until_gc(namespace)
    until_covered(scene, namespace)


@pytest.mark.node
def test_a_state_file_that_somebody_deletes_is_rebuilt_by_one_restart(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    scene.until_gc(namespace)
    until_covered(scene, namespace)
    before = scene.member_pod(namespace)
    assert before is not None
    volume = scene.cluster.volume_path(namespace, "cache-0")
    assert volume
    state = volume / "scheduler-state.json"

    def is_lost() -> bool:
        """A registry writes what it remembers at its next look, if there is news: until it has none."""
        state.unlink(missing_ok=True)
        time.sleep(6)
        return not state.exists()

    eventually("the state file lost for good", is_lost, within=60)
    processes.catch("serve", with_signal=signal.SIGKILL, pod=before["metadata"]["uid"])
    eventually(
        "the registry restarted in place, which knows of nothing",
        lambda: (p := scene.member_pod(namespace)) and is_ready(p) and restarts(p),
    )
    assert scene.count(namespace, "cache-0").uncovered == 8

    def is_replaced() -> bool:
        look_again(scene, namespace)
        pod = scene.member_pod(namespace)
        return pod is not None and pod["metadata"]["uid"] != before["metadata"]["uid"]

    # The keeper believes what it sees only after a minute, twice.
    eventually("the member to be restarted", is_replaced, within=240, every=5)
    scene.until_gc(namespace)
    until_covered(scene, namespace)
