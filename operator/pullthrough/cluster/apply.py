"""Perform one action of a plan, with the preconditions under which it was decided.

Children are created by POST, so that somebody else's object of the same name is never touched, and changed by
server-side apply afterwards. That pair has a trap: the API server records a POST's fields under the operation *Update*,
and a field that a later apply leaves out stays, because that record still claims it. Before the first apply the record
is therefore turned into an *Apply* record, by the patch that client-go's csaupgrade package makes for kubectl
(https://github.com/kubernetes/client-go/blob/v0.34.0/util/csaupgrade/upgrade.go).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from pullthrough.cluster.client import Conflict, KubeClient, NotFound, Raw
from pullthrough.models import constants
from pullthrough.models.plan import Action, Apply, Create, Delete
from pullthrough.models.snapshot import Object, Ref

FIELDS_V1: Final = "fieldsV1"


def ref_of(action: Action) -> Ref:
    """The object that an action is about."""
    match action:
        case Delete():
            return action.ref
        case Create() | Apply():
            return Ref(action.desired["kind"], action.desired["metadata"]["name"])


async def perform(
    client: KubeClient, namespace: str, action: Action, observed: Object | None
) -> Raw | None:
    """Do it; the object as it is afterwards, or None where it is gone.

    `observed` is what the decision was made from: it says whether the record of a POST has to be turned first.
    """
    match action:
        case Create():
            return await client.create(action.desired)
        case Apply():
            return await _apply(client, namespace, action, observed)
        case Delete():
            return await _delete(client, namespace, action)


async def _apply(client: KubeClient, namespace: str, action: Apply, observed: Object | None) -> Raw:
    resource_version = action.resource_version
    if observed is None or has_update_record(observed):
        ref = ref_of(action)
        turned = await _turn_record(client, namespace, ref, action.uid, resource_version)
        if resource_version and turned is not None:
            resource_version = turned["metadata"]["resourceVersion"]
    desired = copy.deepcopy(dict(action.desired))
    desired["metadata"]["uid"] = action.uid
    if resource_version:
        desired["metadata"]["resourceVersion"] = resource_version
    return await client.apply(desired)


async def _delete(client: KubeClient, namespace: str, action: Delete) -> Raw | None:
    kind, name = action.ref.kind, action.ref.name
    try:
        answer = await client.delete(
            kind, namespace, name, uid=action.uid, resource_version=action.resource_version
        )
    except NotFound:
        return None
    is_still_there = answer.get("kind") == kind
    return answer if is_still_there else None


def has_update_record(obj: Mapping[str, Any]) -> bool:
    """Does the object still carry the record of our POST?"""
    return any(_is_ours(entry, "Update") for entry in obj["metadata"].get("managedFields") or ())


def slim_records(obj: Mapping[str, Any]) -> list[Raw]:
    """What of `managedFields` is worth keeping in memory: that there is such a record, without its fields."""
    return [
        {"manager": entry["manager"], "operation": entry["operation"]}
        for entry in obj["metadata"].get("managedFields") or ()
        if _is_ours(entry, "Update")
    ]


async def _turn_record(
    client: KubeClient, namespace: str, ref: Ref, uid: str, resource_version: str
) -> Raw | None:
    """Turn our Update record into an Apply record; None where there was none left."""
    live = await client.get(ref.kind, namespace, ref.name)
    if live is None or live["metadata"]["uid"] != uid:
        msg = f"{ref.kind} {ref.name} is not the object that the decision was made for"
        raise Conflict(409, "Conflict", msg)
    meta = live["metadata"]
    if resource_version and meta["resourceVersion"] != resource_version:
        msg = f"{ref.kind} {ref.name} has changed since the decision"
        raise Conflict(409, "Conflict", msg)
    if not has_update_record(live):
        return None
    operations = [
        {
            "op": "replace",
            "path": "/metadata/managedFields",
            "value": turned(meta["managedFields"]),
        },
        # Replacing it by itself is the optimistic lock: another version answers 409 (a failed `test` would be 422).
        {
            "op": "replace",
            "path": "/metadata/resourceVersion",
            "value": meta["resourceVersion"],
        },
    ]
    return await client.patch_json(ref.kind, namespace, ref.name, operations)


def turned(entries: list[Raw]) -> list[Raw]:
    """The records with ours under the operation Apply, one of them, with the fields of all."""
    ours = [entry for entry in entries if _is_ours(entry, "Update") or _is_ours(entry, "Apply")]
    others = [entry for entry in entries if entry not in ours]
    if not ours:
        return others
    fields: Raw = {}
    for entry in ours:
        fields = _union(fields, entry.get(FIELDS_V1) or {})
    return [*others, {**ours[-1], "operation": "Apply", FIELDS_V1: fields}]


def _is_ours(entry: Mapping[str, Any], operation: str) -> bool:
    is_ours = entry.get("manager") == constants.FIELD_MANAGER
    return is_ours and entry.get("operation") == operation and not entry.get("subresource")


def _union(one: Raw, other: Raw) -> Raw:
    """`fieldsV1` is a tree of sets: the union has every branch of both."""
    merged = dict(one)
    for key, value in other.items():
        merged[key] = _union(merged[key], value) if key in merged else value
    return merged
