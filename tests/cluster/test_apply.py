"""Actions on a real API server.

What contributes to what happens: whether the object exists and whose it is · which operation its record of our fields has
(Update after a POST, Apply after an apply) · uid and resourceVersion of the decision · fields that defaulting, admission
or somebody else set.
"""

from __future__ import annotations

from typing import Any

import pytest

from pullthrough.cluster import apply
from pullthrough.cluster.client import (
    AlreadyExists,
    ApiError,
    Conflict,
    KubeClient,
    NamespaceTerminating,
    Raw,
    Refused,
)
from pullthrough.handlers.cache import InformerCache
from pullthrough.models import constants
from pullthrough.models.plan import Apply, Create, Delete
from pullthrough.models.snapshot import Ref
from pullthrough.reconcile import Key
from tests.cluster import edge

pytestmark = pytest.mark.apiserver


def create(desired: Raw) -> Create:
    return Create(desired=desired, reason="test")


def as_seen(obj: Raw) -> Any:
    """The object as a pass would have it, through the informer cache."""
    cache = InformerCache()
    cache.put(obj)
    key = Key(obj["metadata"]["namespace"], "c")
    return cache.children(key)[Ref(obj["kind"], obj["metadata"]["name"])]


async def made(kube: KubeClient, desired: Raw) -> Raw:
    namespace = desired["metadata"]["namespace"]
    after = await apply.perform(kube, namespace, create(desired), None)
    assert after is not None
    return after


async def applied(kube: KubeClient, desired: Raw, seen: Raw, version: str = "") -> Raw:
    action = Apply(
        desired=desired, uid=seen["metadata"]["uid"], reason="test", resource_version=version
    )
    namespace = desired["metadata"]["namespace"]
    after = await apply.perform(kube, namespace, action, as_seen(seen))
    assert after is not None
    return after


def records(obj: Raw) -> list[tuple[str, str]]:
    return [(entry["manager"], entry["operation"]) for entry in obj["metadata"]["managedFields"]]


def test_a_created_object_is_recorded_under_our_field_manager(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        after = await made(kube, edge.config_map(namespace, a="1"))
        assert records(after) == [(constants.FIELD_MANAGER, "Update")]
        assert apply.has_update_record(as_seen(after))

    edge.with_client(api_server, work)


def test_creating_over_a_foreign_object_leaves_it_untouched(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        foreign = edge.config_map(namespace, mine="yes")
        foreign["metadata"].pop("labels")
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        before = await kube.request("POST", path, body=foreign)
        with pytest.raises(AlreadyExists):
            await made(kube, edge.config_map(namespace, a="1"))
        assert await kube.get("ConfigMap", namespace, "c-config") == before

    edge.with_client(api_server, work)


def test_a_field_dropped_in_the_first_apply_after_a_create_is_gone(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.config_map(namespace, a="1", b="2"))
        after = await applied(kube, edge.config_map(namespace, a="1"), seen)
        assert after["data"] == {"a": "1"}
        assert records(after) == [(constants.FIELD_MANAGER, "Apply")]
        assert not apply.has_update_record(as_seen(after))

    edge.with_client(api_server, work)


def test_control_without_turning_the_record_a_dropped_field_stays(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.config_map(namespace, a="1", b="2"))
        seen["metadata"]["managedFields"] = []
        after = await applied(kube, edge.config_map(namespace, a="1"), seen)
        assert after["data"] == {"a": "1", "b": "2"}

    edge.with_client(api_server, work)


def test_a_field_dropped_in_a_later_apply_is_gone_too(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        pod = {"nodeSelector": {"disk": "fast"}, "priorityClassName": "system-node-critical"}
        seen = await made(kube, edge.stateful_set(namespace, **pod))
        seen = await applied(kube, edge.stateful_set(namespace, **pod, hostNetwork=True), seen)
        after = await applied(kube, edge.stateful_set(namespace), seen)
        spec = after["spec"]["template"]["spec"]
        assert not {"nodeSelector", "priorityClassName", "hostNetwork"} & set(spec)
        assert spec["restartPolicy"] == "Always", "defaults are set anew"

    edge.with_client(api_server, work)


def test_what_admission_filled_in_survives_the_first_apply(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        storage_class = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": namespace,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "example.com/none",
        }
        await kube.request("POST", "/apis/storage.k8s.io/v1/storageclasses", body=storage_class)
        seen = await made(kube, edge.claim(namespace))
        deadline = 50
        while seen["spec"].get("storageClassName") != namespace and deadline:
            deadline -= 1  # the admission plugin learns of the class by a watch
            await apply.perform(
                kube,
                namespace,
                Delete(ref=Ref(seen["kind"], "c-0"), uid=seen["metadata"]["uid"], reason="test"),
                seen,
            )
            seen = await unprotected(kube, namespace)
        assert seen["spec"]["storageClassName"] == namespace
        desired = edge.claim(namespace)
        desired["metadata"]["annotations"] = {constants.ANNOTATION_UPSTREAM_HOST: "docker.io"}
        after = await applied(kube, desired, seen)
        assert after["spec"] == seen["spec"]
        assert after["metadata"]["annotations"] == desired["metadata"]["annotations"]
        seen = await made(kube, edge.service(namespace))
        after = await applied(kube, edge.service(namespace, publishNotReadyAddresses=True), seen)
        assert after["spec"]["clusterIP"] == seen["spec"]["clusterIP"]

    edge.with_client(api_server, work)


async def unprotected(kube: KubeClient, namespace: str) -> Raw:
    """A claim made anew; no controller is there to lift its finalizer, so it is lifted here."""
    if await kube.get("PersistentVolumeClaim", namespace, "c-0") is not None:
        lift = [{"op": "remove", "path": "/metadata/finalizers"}]
        await kube.patch_json("PersistentVolumeClaim", namespace, "c-0", lift)
    return await made(kube, edge.claim(namespace))


def test_drift_made_by_somebody_else_is_taken_back(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.service(namespace))
        operations = [{"op": "replace", "path": "/spec/ports/0/port", "value": 80}]
        path = f"/api/v1/namespaces/{namespace}/services/c"
        seen = await kube.request(
            "PATCH", path, body=operations, content_type="application/json-patch+json"
        )
        after = await applied(kube, edge.service(namespace), seen)
        assert [port["port"] for port in after["spec"]["ports"]] == [5000]

    edge.with_client(api_server, work)


def test_a_drift_that_makes_our_apply_invalid_is_taken_back_under_the_same_version(
    api_server: Any,
) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.stateful_set(namespace))
        desired = edge.stateful_set(namespace)
        ports = [{"name": "registry", "containerPort": 5000}]
        desired["spec"]["template"]["spec"]["containers"][0]["ports"] = ports
        seen = await applied(kube, desired, seen)
        path = "/spec/template/spec/containers/0/ports/0/containerPort"
        seen = await kube.request(
            "PATCH",
            f"/apis/apps/v1/namespaces/{namespace}/statefulsets/c-0",
            body=[{"op": "replace", "path": path, "value": 80}],
            content_type="application/json-patch+json",
        )
        version = seen["metadata"]["resourceVersion"]
        after = await applied(kube, desired, seen, version)
        found = after["spec"]["template"]["spec"]["containers"][0]["ports"]
        assert [port["containerPort"] for port in found] == [5000]
        assert (constants.FIELD_MANAGER, "Update") not in records(after)

    edge.with_client(api_server, work)


def test_applying_the_same_again_changes_no_resource_version(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.stateful_set(namespace))
        once = await applied(kube, edge.stateful_set(namespace), seen)
        twice = await applied(kube, edge.stateful_set(namespace), once)
        assert twice["metadata"]["resourceVersion"] == once["metadata"]["resourceVersion"]

    edge.with_client(api_server, work)


@pytest.mark.parametrize("is_turned", [False, True], ids=["after a create", "after an apply"])
def test_an_apply_for_another_uid_conflicts_and_changes_nothing(
    api_server: Any, is_turned: bool
) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        desired = edge.config_map(namespace, a="1")
        seen = await made(kube, desired)
        if is_turned:
            seen = await applied(kube, desired, seen)
        other = {**seen, "metadata": {**seen["metadata"], "uid": "00000000-0000"}}
        with pytest.raises(Conflict):
            await applied(kube, edge.config_map(namespace, a="2"), other)
        assert await kube.get("ConfigMap", namespace, "c-config") == seen

    edge.with_client(api_server, work)


@pytest.mark.parametrize("is_turned", [False, True], ids=["after a create", "after an apply"])
def test_an_apply_never_brings_a_deleted_object_back(api_server: Any, is_turned: bool) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        desired = edge.config_map(namespace, a="1")
        seen = await made(kube, desired)
        if is_turned:
            seen = await applied(kube, desired, seen)
        await kube.delete("ConfigMap", namespace, "c-config", uid=seen["metadata"]["uid"])
        with pytest.raises(Conflict):
            await applied(kube, desired, seen)
        assert await kube.get("ConfigMap", namespace, "c-config") is None

    edge.with_client(api_server, work)


@pytest.mark.parametrize("is_turned", [False, True], ids=["after a create", "after an apply"])
def test_an_apply_with_a_resource_version_holds_only_for_that_version(
    api_server: Any, is_turned: bool
) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.config_map(namespace, a="1"))
        if is_turned:
            seen = await applied(kube, edge.config_map(namespace, a="1"), seen)
        version = seen["metadata"]["resourceVersion"]
        after = await applied(kube, edge.config_map(namespace, a="2"), seen, version)
        assert after["data"] == {"a": "2"}
        with pytest.raises(Conflict):
            await applied(kube, edge.config_map(namespace, a="3"), seen, version)
        live = await kube.get("ConfigMap", namespace, "c-config")
        assert live is not None
        assert live["data"] == {"a": "2"}

    edge.with_client(api_server, work)


def test_a_delete_holds_only_for_its_uid_and_version(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.config_map(namespace, a="1"))
        ref, uid = Ref("ConfigMap", "c-config"), seen["metadata"]["uid"]
        old = seen["metadata"]["resourceVersion"]
        await applied(kube, edge.config_map(namespace, a="2"), seen)
        for action in (
            Delete(ref=ref, uid="00000000-0000", reason="test"),
            Delete(ref=ref, uid=uid, resource_version=old, reason="test"),
        ):
            with pytest.raises(Conflict):
                await apply.perform(kube, namespace, action, seen)
        right = Delete(ref=ref, uid=uid, reason="test")
        assert await apply.perform(kube, namespace, right, seen) is None
        assert await kube.get("ConfigMap", namespace, "c-config") is None
        assert await apply.perform(kube, namespace, right, seen) is None, "gone is gone"

    edge.with_client(api_server, work)


def test_a_deleted_claim_that_is_protected_is_seen_as_terminating(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.claim(namespace))
        ref = Ref("PersistentVolumeClaim", "c-0")
        action = Delete(ref=ref, uid=seen["metadata"]["uid"], reason="test")
        after = await apply.perform(kube, namespace, action, seen)
        assert after is not None
        assert after["metadata"]["deletionTimestamp"]

    edge.with_client(api_server, work)


def test_what_validation_refuses_is_refused_with_its_reason(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        seen = await made(kube, edge.stateful_set(namespace))
        desired = edge.stateful_set(namespace)
        desired["spec"]["serviceName"] = "another"
        with pytest.raises(Refused, match="Forbidden") as caught:
            await applied(kube, desired, seen)
        assert (caught.value.status, caught.value.reason) == (422, "Invalid")

    edge.with_client(api_server, work)


def test_a_terminating_namespace_is_told_apart(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        await kube.request("DELETE", f"/api/v1/namespaces/{namespace}")
        with pytest.raises(NamespaceTerminating):
            await made(kube, edge.config_map(namespace))

    edge.with_client(api_server, work)


def test_lists_name_the_kind_and_follow_pages(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        namespace = await edge.new_namespace(kube)
        for number in range(3):
            await made(kube, edge.config_map(namespace, name=f"c-{number}"))
        found = await kube.list_all("ConfigMap", f"{constants.LABEL_CACHE}=c")
        ours = [one for one in found if one["metadata"]["namespace"] == namespace]
        assert [one["kind"] for one in ours] == ["ConfigMap"] * 3

    edge.with_client(api_server, work)


def test_a_missing_token_is_an_error_of_the_tree(api_server: Any) -> None:
    async def work(kube: KubeClient) -> None:
        kube._api.configuration.api_key = {}
        with pytest.raises(ApiError):
            await kube.list_all("ConfigMap")

    edge.with_client(api_server, work)
