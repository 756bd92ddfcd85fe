"""A pass on a real API server, with a plan function that says what the test wants.

What contributes: what the view shows and what is really there · what the plan wants confirmed or asked · which action
fails and how · whether the status differs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from pullthrough.cluster.client import AlreadyExists, Conflict, KubeClient, Raw, Refused
from pullthrough.handlers.cache import InformerCache
from pullthrough.models import constants
from pullthrough.models.plan import Apply, Create, DryRun, Event, Plan
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import KeeperReport, Ref, Snapshot
from pullthrough.reconcile import Key, Reconciler
from tests.cluster import edge

pytestmark = pytest.mark.apiserver

SETTINGS = Settings(image="operator")
CONFIG = Ref("ConfigMap", "c-config")
CONDITION = {
    "type": "Ready",
    "status": "False",
    "reason": "Creating",
    "message": "",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


class Keepers:
    """Notes who was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def read(self, pod: Any) -> KeeperReport:
        self.asked.append(pod and pod["metadata"]["name"])
        return KeeperReport(pod_uid="u", canary="Passed")


class Stage:
    """One cache in a namespace of its own, a view that knows it, and what the plan function was given."""

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace
        self.key = Key(namespace, "c")
        self.view, self.keepers = InformerCache(), Keepers()
        self.snapshots: list[Snapshot] = []
        self.decide: Callable[[Mapping[str, Any], Snapshot], Plan] = lambda *_: Plan()
        self.reconciler = Reconciler(
            kube=kube, view=self.view, reports=self.keepers, plan=self.plan, settings=SETTINGS
        )

    def plan(self, cache: Mapping[str, Any], snapshot: Snapshot, settings: Settings) -> Plan:
        assert settings is SETTINGS
        self.snapshots.append(snapshot)
        return self.decide(cache, snapshot)

    def says(self, plan: Plan) -> None:
        self.decide = lambda *_: plan

    async def run(self) -> float | None:
        return await self.reconciler.reconcile(self.key)

    async def live(self) -> Raw:
        found = await self.kube.get(constants.KIND, self.namespace, "c")
        assert found is not None
        return found

    async def events(self) -> list[tuple[str, str, str]]:
        path = f"/api/v1/namespaces/{self.namespace}/events"
        found = (await self.kube.request("GET", path))["items"]
        return [(one["type"], one["reason"], one["message"]) for one in found]


def on_stage(server: Any, work: Callable[[Stage], Awaitable[None]]) -> None:
    async def prepared(kube: KubeClient) -> None:
        await edge.install_crd(kube)
        stage = Stage(kube, await edge.new_namespace(kube))
        stage.view.put(await kube.create(edge.cache(stage.namespace)))
        await work(stage)

    edge.with_client(server, prepared)


def test_the_status_is_written_once_and_a_second_pass_writes_nothing(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        event = Event(type="Normal", reason="Created", message="made")
        stage.says(Plan(status={"observedGeneration": 1, "conditions": [CONDITION]}))
        await stage.run()
        first = await stage.live()
        assert first["status"] == {"observedGeneration": 1, "conditions": [CONDITION]}
        writes = stage.kube.writes
        await stage.run()
        assert stage.kube.writes == writes
        stage.says(Plan(status={"observedGeneration": 1}, events=(event,), requeue_after=7.0))
        assert await stage.run() == 7.0
        assert "conditions" not in (await stage.live())["status"], "what is left out goes away"
        assert await stage.events() == [("Normal", "Created", "made")]
        await stage.run()
        assert len(await stage.events()) == 1, "the same event is not posted twice in a row"

    on_stage(api_server, work)


def test_a_status_decided_from_an_old_view_is_refused_and_the_view_renewed(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        patch = {"metadata": {"labels": {"a": "b"}}}
        path = f"/apis/{constants.API_VERSION}/namespaces/{stage.namespace}/{constants.PLURAL}/c"
        kind = "application/merge-patch+json"
        await stage.kube.request("PATCH", path, body=patch, content_type=kind)
        stage.says(Plan(status={"observedGeneration": 1}))
        with pytest.raises(Conflict):
            await stage.run()
        assert (await stage.live())["status"] == {"observedGeneration": -1}, "the default"
        await stage.run()
        assert (await stage.live())["status"] == {"observedGeneration": 1}

    on_stage(api_server, work)


def test_what_the_plan_wants_confirmed_is_read_live_and_decided_again(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        await stage.kube.create(edge.config_map(stage.namespace, a="1"))
        absent = Ref("StatefulSet", "c-0")

        def decide(_: Mapping[str, Any], snapshot: Snapshot) -> Plan:
            return Plan(confirm=(CONFIG, absent))

        stage.decide = decide
        await stage.run()
        before, after = stage.snapshots
        assert before.objects == {}
        assert after.objects[CONFIG]["data"] == {"a": "1"}
        assert after.confirmed_absent == {absent}
        assert CONFIG in stage.view.children(stage.key), "the view has learned of it"

    on_stage(api_server, work)


def test_a_ghost_in_the_view_is_dropped_by_a_live_read(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        ghost = edge.config_map(stage.namespace)
        ghost["metadata"] |= {"uid": "u", "resourceVersion": "1"}
        stage.view.put(ghost)
        stage.says(Plan(confirm=(CONFIG,)))
        await stage.run()
        assert CONFIG in stage.snapshots[0].objects
        assert CONFIG in stage.snapshots[1].confirmed_absent
        assert CONFIG not in stage.view.children(stage.key)

    on_stage(api_server, work)


def test_nothing_is_done_while_something_stays_unconfirmed_after_three_rounds(
    api_server: Any,
) -> None:
    async def work(stage: Stage) -> None:
        create = Create(desired=edge.config_map(stage.namespace), reason="test")

        def decide(_: Mapping[str, Any], snapshot: Snapshot) -> Plan:
            wanted = Ref("ConfigMap", f"another-{len(stage.snapshots)}")
            return Plan(confirm=(wanted,), actions=(create,), status={"observedGeneration": 1})

        stage.decide = decide
        assert await stage.run() is not None
        assert len(stage.snapshots) == 3
        assert await stage.kube.get("ConfigMap", stage.namespace, "c-config") is None
        assert (await stage.live())["status"] == {"observedGeneration": -1}, "the default"

    on_stage(api_server, work)


def test_the_cache_itself_can_be_confirmed(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        live = await stage.live()
        seen: list[Any] = []
        body = {"status": {"observedGeneration": 1}}
        await stage.kube.patch_status(constants.KIND, stage.namespace, "c", body)

        def decide(cache: Mapping[str, Any], _: Snapshot) -> Plan:
            seen.append(cache.get("status"))
            return Plan(confirm=(Ref(constants.KIND, "c"),), status={"observedGeneration": 2})

        stage.decide = decide
        await stage.run()
        assert seen == [live.get("status"), {"observedGeneration": 1}]
        assert (await stage.live())["status"] == {"observedGeneration": 2}, "no conflict"

    on_stage(api_server, work)


def test_the_keeper_is_asked_only_when_the_plan_wants_its_report(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        await stage.run()
        assert stage.keepers.asked == []
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": stage.namespace,
                "name": "c-0-0",
                "labels": edge.labels(),
                "uid": "u",
            },
        }
        stage.view.put(pod)
        stage.says(Plan(wants_report=("c-0",)))
        await stage.run()
        assert stage.keepers.asked == ["c-0-0"]
        assert stage.snapshots[-1].reports["c-0"].canary == "Passed"

    on_stage(api_server, work)


def test_a_foreign_object_of_our_name_is_left_untouched_and_seen_by_the_next_pass(
    api_server: Any,
) -> None:
    async def work(stage: Stage) -> None:
        foreign = edge.config_map(stage.namespace, mine="yes")
        foreign["metadata"].pop("labels")
        before = await stage.kube.create(foreign)
        desired = edge.config_map(stage.namespace)
        stage.says(Plan(actions=(Create(desired=desired, reason="test"),)))
        with pytest.raises(AlreadyExists):
            await stage.run()
        assert await stage.kube.get("ConfigMap", stage.namespace, "c-config") == before
        stage.says(Plan())
        await stage.run()
        assert stage.snapshots[-1].objects[CONFIG] == before
        await stage.kube.delete(
            "ConfigMap", stage.namespace, "c-config", uid=before["metadata"]["uid"]
        )
        await stage.run()
        assert CONFIG in stage.snapshots[-1].confirmed_absent, "its end is noticed, too"

    on_stage(api_server, work)


def test_an_action_on_something_that_was_replaced_fails_and_the_view_is_renewed(
    api_server: Any,
) -> None:
    async def work(stage: Stage) -> None:
        desired = edge.config_map(stage.namespace, a="1")
        old = await stage.kube.create(desired)
        stage.view.put(old)
        await stage.kube.delete(
            "ConfigMap", stage.namespace, "c-config", uid=old["metadata"]["uid"]
        )
        new = await stage.kube.create(desired)
        stage.says(Plan(actions=(Apply(desired=desired, uid=old["metadata"]["uid"], reason="t"),)))
        with pytest.raises(Conflict):
            await stage.run()
        seen = stage.view.children(stage.key)[CONFIG]
        assert seen["metadata"]["uid"] == new["metadata"]["uid"]

    on_stage(api_server, work)


def test_a_refused_action_is_decided_again_for_the_status_alone(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        wrong = edge.service(stage.namespace, type="Nonsense")
        action = Create(desired=wrong, reason="test")
        never = Create(desired=edge.config_map(stage.namespace), reason="test")

        def decide(_: Mapping[str, Any], snapshot: Snapshot) -> Plan:
            if snapshot.refusal is None:
                return Plan(actions=(action, never), status={"observedGeneration": 1})
            assert snapshot.refusal.ref == Ref("Service", "c")
            told = Event(type="Warning", reason="RequestRefused", message=snapshot.refusal.message)
            return Plan(actions=(never,), status={"observedGeneration": 2}, events=(told,))

        stage.decide = decide
        for _ in range(2):
            with pytest.raises(Refused):
                await stage.run()
        assert (await stage.live())["status"] == {"observedGeneration": 2}
        ((kind, reason, message),) = await stage.events()
        assert (kind, reason) == ("Warning", "RequestRefused")
        assert "Nonsense" in message
        assert await stage.kube.get("ConfigMap", stage.namespace, "c-config") is None

    on_stage(api_server, work)


POD_SPEC = {"containers": [{"name": "c", "image": "example.org/none"}]}


def pod(stage: Stage, **metadata: Any) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": stage.namespace, **metadata},
        "spec": POD_SPEC,
    }


async def allow_pods(stage: Stage, quota: int | None = None) -> None:
    """What the controllers would have made: the account that pods run as, and a quota's status."""
    core = f"/api/v1/namespaces/{stage.namespace}"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    await stage.kube.request("POST", f"{core}/serviceaccounts", body=account)
    if quota is None:
        return
    hard = {"pods": str(quota)}
    body = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": hard},
    }
    made = await stage.kube.request("POST", f"{core}/resourcequotas", body=body)
    made["status"] = {"hard": hard, "used": {"pods": "0"}}
    await stage.kube.request("PUT", f"{core}/resourcequotas/small/status", body=made)


def test_a_dry_run_that_is_admitted_makes_nothing(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        await allow_pods(stage)
        tried = DryRun(desired=pod(stage, generateName="c-0-"), reason="test")
        then = Create(desired=edge.config_map(stage.namespace), reason="test")
        stage.says(Plan(actions=(tried, then)))
        await stage.run()
        assert await stage.kube.list_all("Pod", namespace=stage.namespace) == []
        assert await stage.kube.get("ConfigMap", stage.namespace, "c-config") is not None

    on_stage(api_server, work)


def test_a_dry_run_that_a_quota_refuses_ends_the_pass_with_the_quotas_words(
    api_server: Any,
) -> None:
    async def work(stage: Stage) -> None:
        await allow_pods(stage, quota=0)
        tried = DryRun(desired=pod(stage, generateName="c-0-"), reason="test")
        never = Create(desired=edge.config_map(stage.namespace), reason="test")
        stage.says(Plan(actions=(tried, never)))
        with pytest.raises(Refused):
            await stage.run()
        refusal = stage.snapshots[-1].refusal
        assert refusal is not None and refusal.is_dry_run
        assert "exceeded quota: small" in refusal.message
        assert await stage.kube.get("ConfigMap", stage.namespace, "c-config") is None

    on_stage(api_server, work)


def test_everybodys_pods_on_a_claim_are_in_the_snapshot_and_no_others(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        await allow_pods(stage)
        for name, claim in (("one", "c-0"), ("two", "other"), ("three", None)):
            wanted = pod(stage, name=name)
            source = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
            wanted["spec"] = {**POD_SPEC, "volumes": [{"name": "v", **source}]}
            await stage.kube.create(wanted)
        stage.says(Plan(wants_users=("c-0",)))
        await stage.run()
        users = stage.snapshots[-1].users["c-0"]
        assert [user["metadata"]["name"] for user in users] == ["one"]

    on_stage(api_server, work)


def test_a_terminating_namespace_is_part_of_the_next_snapshot(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        await stage.kube.request("DELETE", f"/api/v1/namespaces/{stage.namespace}")
        stage.says(Plan(actions=(Create(desired=edge.config_map(stage.namespace), reason="test"),)))
        assert await stage.run() is not None
        stage.says(Plan())
        await stage.run()
        assert [one.namespace_terminating for one in stage.snapshots] == [False, True]

    on_stage(api_server, work)


def test_what_was_just_made_is_in_the_view_before_any_watch_shows_it(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        action = Create(desired=edge.config_map(stage.namespace), reason="test")
        stage.says(Plan(actions=(action,)))
        await stage.run()
        assert CONFIG in stage.view.children(stage.key)

    on_stage(api_server, work)


def test_a_cache_that_is_gone_needs_nothing(api_server: Any) -> None:
    async def work(stage: Stage) -> None:
        stage.view.drop(constants.KIND, stage.namespace, "c")
        assert await stage.run() is None
        assert stage.snapshots == []

    on_stage(api_server, work)
