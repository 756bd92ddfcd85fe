"""Stories on a real cluster: as a user would, with something going wrong in the middle, and it ends right.

Each story has its own namespace with its own upstream. "Gone" is counted on the volume itself. What a story is about is
asserted in it: that the process was killed in that phase, that something was lost by the kill, that the Job had begun.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from e2e import processes
from e2e.cluster import Unavailable
from e2e.scene import Scene, StoryFailed, allowed_gap, eventually, is_ready, parse_time
from tests import images as content

pytestmark = pytest.mark.cluster

ON = {"mode": "Enabled", "ttl": "1m"}
LONG = {"mode": "Enabled", "ttl": "1h"}
"""For stories that end with everything covered; that what is covered goes is the first story's claim."""
OFF = {"mode": "Disabled"}
PULLED = ["team/app0:1", "team/app1:1"]
"""What `fill` pushes and pulls."""


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


def catch_program(namespace: str, name: str, with_signal: signal.Signals) -> int:
    """Signal a storage program of this story's cache as soon as it is there; its process id."""
    upstream = f"--upstream-host=upstream.{namespace}.svc:5000"
    return processes.catch(name, upstream, with_signal=with_signal)


class OperatorProcess:
    """The operator as a fault meets it: by its process, from outside."""

    def __init__(self, scene: Scene) -> None:
        """In a pod of its own: kubelet makes a container that crashed before wait, longer each time."""
        self._scene = scene
        scene.delete_operator_pod()
        self._uid = eventually("a fresh operator", self._fresh, saw=scene.operator_pod)

    def freeze(self) -> None:
        """From now on it sees and does nothing, until it is killed."""
        self._catch(signal.SIGSTOP)

    def kill(self) -> None:
        self._catch(signal.SIGKILL)

    def until_restarted(self) -> None:
        """Waits until the same pod has a new process in its place."""
        eventually("the operator restarted in place", self._restarted, saw=self._scene.operator_pod)
        assert self._scene.operator_pod()["metadata"]["uid"] == self._uid

    def _catch(self, with_signal: signal.Signals) -> None:
        processes.catch("run", with_signal=with_signal, pod=self._uid)

    def _fresh(self) -> str | None:
        pod = self._scene.operator_pod()
        return str(pod["metadata"]["uid"]) if is_ready(pod) and not restarts(pod) else None

    def _restarted(self) -> bool:
        pod = self._scene.operator_pod()
        return is_ready(pod) and restarts(pod) == 1


def kill_in_phase(scene: Scene, namespace: str, operator: OperatorProcess, phase: str) -> None:
    """Turn garbage collection on and kill the operator in that phase; what makes it that phase is asserted after the kill."""
    match phase:
        case "asked":  # nothing of the change was seen
            operator.freeze()
            turn(scene, namespace, LONG)
            operator.kill()
            assert scene.jobs(namespace) == []
        case "job":
            turn(scene, namespace, LONG)
            job = catch_program(namespace, "migrate", signal.SIGSTOP)
            operator.kill()
            assert _template_mode(scene, namespace) == "Disabled"
            os.kill(job, signal.SIGCONT)
        case "rolling":  # the template is written, the old pod not gone
            turn(scene, namespace, LONG)
            until_rolling(scene, namespace)
            operator.kill()
            assert _pod_mode(scene, namespace) != "Enabled"
        case "preparing":
            turn(scene, namespace, LONG)
            until_rolling(scene, namespace)
            preparing = catch_program(namespace, "prepare", signal.SIGSTOP)
            operator.kill()
            assert _pod_mode(scene, namespace) == "Enabled"
            assert not is_ready(scene.member_pod(namespace) or {})
            os.kill(preparing, signal.SIGCONT)
        case "trial":  # the member serves, and nobody has noted that it does
            turn(scene, namespace, LONG)
            until_rolling(scene, namespace)
            operator.freeze()
            eventually("the member to serve with GC on", lambda: _serves_with_gc(scene, namespace))
            operator.kill()
            assert _verified(scene, namespace) is None
        case _:
            raise AssertionError(phase)


def test_garbage_collection_is_turned_on_and_no_pull_fails_longer_than_at_a_restart(
    scene: Scene, namespace: str
) -> None:
    ours = filled_cache(scene, namespace)
    restart = scene.plain_restart(namespace, "cache", ours, PULLED)
    with content.PullLoop(ours, PULLED) as loop:
        turn(scene, namespace, ON)
        scene.until_gc(namespace)
        loop.until_good(60)
    assert loop.attempts > 5
    assert loop.longest_gap < allowed_gap(restart), (loop.longest_gap, restart, loop.failures)
    scene.until_canary_passed(namespace)
    until_gone(scene, namespace)
    content.pull(ours, "team/app0", "1")
    assert scene.jobs(namespace) == []


@pytest.mark.node
@pytest.mark.parametrize("phase", ["asked", "job", "rolling", "preparing", "trial"])
def test_the_operator_killed_in_a_phase_of_the_migration_changes_nothing_of_its_end(
    scene: Scene, namespace: str, phase: str
) -> None:
    filled_cache(scene, namespace)
    operator = OperatorProcess(scene)
    kill_in_phase(scene, namespace, operator, phase)
    operator.until_restarted()
    scene.until_gc(namespace)
    until_covered(scene, namespace)
    eventually("the switch to be verified", lambda: _verified(scene, namespace))


def test_the_operators_pod_lost_with_its_node_during_the_migration_changes_nothing_of_its_end(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    eventually("the Job", lambda: scene.jobs(namespace), every=0.1)
    scene.delete_operator_pod("--grace-period=0", "--force")
    scene.until_gc(namespace)
    until_covered(scene, namespace)


@pytest.mark.node
def test_the_jobs_pod_killed_is_another_attempt_and_costs_no_pull(
    scene: Scene, namespace: str
) -> None:
    ours = filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    catch_program(namespace, "migrate", signal.SIGKILL)
    content.pull(ours, "team/app0", "1")
    scene.until_gc(namespace)
    until_covered(scene, namespace)


@pytest.mark.node
def test_the_members_pod_deleted_while_the_job_hangs_is_back_as_after_a_plain_restart(
    scene: Scene, namespace: str
) -> None:
    ours = filled_cache(scene, namespace)
    restart = scene.plain_restart(namespace, "cache", ours, PULLED)
    turn(scene, namespace, LONG)
    catch_program(namespace, "migrate", signal.SIGSTOP)
    beside_the_job = scene.plain_restart(namespace, "cache", ours, PULLED)
    assert beside_the_job < allowed_gap(restart), (beside_the_job, restart)
    scene.until_gc(namespace)
    until_covered(scene, namespace)


@pytest.mark.node
def test_prepare_killed_runs_again_and_ends_the_same(scene: Scene, namespace: str) -> None:
    filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    until_rolling(scene, namespace)
    catch_program(namespace, "prepare", signal.SIGKILL)
    scene.until_gc(namespace)
    until_covered(scene, namespace)


@pytest.mark.node
def test_the_registry_killed_right_after_a_pull_leaves_nothing_for_ever(
    scene: Scene, namespace: str
) -> None:
    scene.cache(namespace, gc=ON)
    scene.until_ready(namespace)
    ours = fill(scene, namespace)
    pod = scene.member_pod(namespace)
    assert pod
    eventually("entries for all", lambda: not scene.count(namespace, "cache-0").uncovered)
    for name in ("early", "late"):
        image = content.image(name, layers=[content.layer(name, 100_000)])
        content.push(scene.address(namespace, "upstream"), f"team/{name}", "1", image)
    # The registry writes its entries every 5 s if there are new ones: what is pulled right after that is not among them.
    volume = scene.cluster.volume_path(namespace, "cache-0")
    assert volume
    state = volume / "scheduler-state.json"
    written = state.stat().st_mtime_ns
    content.pull(ours, "team/early", "1")
    eventually("entries", lambda: state.stat().st_mtime_ns != written, every=0.02)
    content.pull(ours, "team/late", "1")
    processes.catch("serve", with_signal=signal.SIGKILL, pod=pod["metadata"]["uid"])
    eventually(
        "the registry restarted in place",
        lambda: (p := scene.member_pod(namespace)) and is_ready(p) and restarts(p),
    )
    assert (scene.member_pod(namespace) or {})["metadata"]["uid"] == pod["metadata"]["uid"]
    lost = scene.count(namespace, "cache-0").uncovered
    assert lost == 3, "manifest, config and layer: the kill came before their entries were written"
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


@pytest.mark.node
def test_suspended_in_the_middle_nothing_moves_until_it_is_resumed(
    scene: Scene, namespace: str
) -> None:
    filled_cache(scene, namespace)
    turn(scene, namespace, LONG)
    hanging = catch_program(namespace, "migrate", signal.SIGSTOP)
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"suspend": True}})
    scene.until_condition(namespace, "cache", "Migrating", "False", reason="Suspended")
    before = _versions(scene, namespace)
    (uid,) = (job["metadata"]["uid"] for job in scene.jobs(namespace))
    os.kill(hanging, signal.SIGCONT)
    eventually("the Job's end", lambda: scene.jobs(namespace)[0]["status"].get("succeeded"))
    time.sleep(10)
    assert [job["metadata"]["uid"] for job in scene.jobs(namespace)] == [uid], "its result stays"
    assert _versions(scene, namespace) == before, "the Job invites the roll, and suspend forbids it"
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"suspend": False}})
    scene.until_gc(namespace)
    until_covered(scene, namespace)


def test_suspended_before_the_switch_not_even_a_job_is_made(scene: Scene, namespace: str) -> None:
    filled_cache(scene, namespace)
    scene.kubectl.patch("ptc", "cache", namespace, {"spec": {"suspend": True}})
    turn(scene, namespace, LONG)
    scene.until_condition(namespace, "cache", "Migrating", "False", reason="Suspended")
    before = _versions(scene, namespace)
    time.sleep(8)
    assert scene.jobs(namespace) == []
    assert _versions(scene, namespace) == before
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
    ours = filled_cache(scene, namespace, registry={"series": "v2", "image": v2_image(scene)})
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


def v2_image(scene: Scene) -> str:
    try:
        return scene.registry_image("v2")
    except Unavailable as why:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no registry 2.8.2 here: {why}")


def until_rolling(scene: Scene, namespace: str) -> None:
    eventually("the roll", lambda: _template_mode(scene, namespace) == "Enabled", every=0.05)


def _stateful_set(scene: Scene, namespace: str) -> dict[str, Any]:
    found = scene.kubectl.get("statefulset", "cache-0", namespace)
    if found is None:
        msg = "the member's StatefulSet is gone"
        raise StoryFailed(msg)
    return found


def _template_mode(scene: Scene, namespace: str) -> str | None:
    return _mode(_stateful_set(scene, namespace)["spec"]["template"])


def _pod_mode(scene: Scene, namespace: str) -> str | None:
    pod = scene.member_pod(namespace)
    return None if pod is None else _mode(pod)


def _mode(annotated: dict[str, Any]) -> str | None:
    mode: str | None = annotated["metadata"]["annotations"].get("pullthrough.dev/gc-mode")
    return mode


def _serves_with_gc(scene: Scene, namespace: str) -> bool:
    pod = scene.member_pod(namespace)
    return pod is not None and is_ready(pod) and _mode(pod) == "Enabled"


def _verified(scene: Scene, namespace: str) -> str | None:
    annotations = _stateful_set(scene, namespace)["metadata"].get("annotations", {})
    noted: str | None = annotations.get("pullthrough.dev/verified")
    return noted


def _versions(scene: Scene, namespace: str) -> dict[str, Any]:
    """What the operator would have to change, to go on: generations of what it writes, and the member's pod."""
    written = {
        f"{kind}/{each['metadata']['name']}": each["metadata"].get("generation")
        for kind in ("statefulset", "service", "configmap", "pvc")
        for each in scene.kubectl.list(kind, namespace, "pullthrough.dev/cache=cache")
    }
    return {**written, "pod": (scene.member_pod(namespace) or {})["metadata"]["uid"]}


def restarts(pod: dict[str, Any]) -> int:
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))
