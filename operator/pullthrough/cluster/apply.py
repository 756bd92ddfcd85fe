"""Perform one action of a plan, with the preconditions under which it was decided.

Children are created by POST, so that somebody else's object of the same name is never touched, and changed by
server-side apply afterwards. That pair has a trap: the API server records a POST's fields under the operation *Update*,
and a field that a later apply leaves out stays, because that record still claims it. Before the first apply the record
is therefore turned into an *Apply* record, by the patch that client-go's csaupgrade package makes for kubectl
(https://github.com/kubernetes/client-go/blob/v0.34.0/util/csaupgrade/upgrade.go).

And a second one: lists of named things are merged by their keys. Somebody who changes the number of a Service's port gets
a second port beside it from our next apply, which validation refuses for its name, for ever. So where an apply is refused
as invalid, the lists that differ are put back as a whole, and then it is applied once more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pullthrough.cluster.client import Conflict, KubeClient, NotFound, Raw, Refused
from pullthrough.models import constants
from pullthrough.models.plan import Action, Apply, Create, Delete, DryRun
from pullthrough.models.snapshot import Object, Ref

FIELDS_V1: Final = "fieldsV1"


def ref_of(action: Action) -> Ref:
    """The object that an action is about."""
    match action:
        case Delete():
            return action.ref
        case DryRun():
            return Ref(action.desired["kind"], action.desired["metadata"]["generateName"])
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
        case DryRun():
            await client.create(action.desired, dry_run=True)
            return None
        case Apply():
            return await _apply(client, namespace, action, observed)
        case Delete():
            return await _delete(client, namespace, action)


async def _apply(client: KubeClient, namespace: str, action: Apply, observed: Object | None) -> Raw:
    version = action.resource_version
    if observed is None or has_update_record(observed):
        version = await _turn_record(client, namespace, action, version)
    try:
        return await client.apply(_with_preconditions(action, version))
    except Refused as error:
        if error.status != 422:
            raise
        restored = await _restore_lists(client, namespace, action, version)
        if restored is None:
            raise
    after = await _turn_record(client, namespace, action, restored)
    return await client.apply(_with_preconditions(action, after if version else ""))


def _with_preconditions(action: Apply, resource_version: str) -> Raw:
    desired = copy.deepcopy(dict(action.desired))
    desired["metadata"]["uid"] = action.uid
    if resource_version:
        desired["metadata"]["resourceVersion"] = resource_version
    return desired


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
    client: KubeClient, namespace: str, action: Apply, resource_version: str
) -> str:
    """Turn our Update record into an Apply record; the resourceVersion to go on with, none where none was given."""
    ref = ref_of(action)
    live = await client.get(ref.kind, namespace, ref.name)
    if live is None or live["metadata"]["uid"] != action.uid:
        msg = f"{ref.kind} {ref.name} is not the object that the decision was made for"
        raise Conflict(409, "Conflict", msg)
    meta = live["metadata"]
    if resource_version and meta["resourceVersion"] != resource_version:
        msg = f"{ref.kind} {ref.name} has changed since the decision"
        raise Conflict(409, "Conflict", msg)
    if not has_update_record(live):
        return resource_version
    operation = {
        "op": "replace",
        "path": "/metadata/managedFields",
        "value": turned(meta["managedFields"]),
    }
    after = await client.patch_json(ref.kind, namespace, ref.name, [operation, _lock(live)])
    return str(after["metadata"]["resourceVersion"]) if resource_version else ""


async def _restore_lists(
    client: KubeClient, namespace: str, action: Apply, resource_version: str
) -> str | None:
    """Put back the lists that somebody changed; the new resourceVersion, or None where no list differed."""
    ref = ref_of(action)
    live = await client.get(ref.kind, namespace, ref.name)
    if live is None or live["metadata"]["uid"] != action.uid:
        return None
    if resource_version and live["metadata"]["resourceVersion"] != resource_version:
        return None
    operations = list(_list_replacements(action.desired, live, ""))
    if not operations:
        return None
    operations.append(_lock(live))
    after = await client.patch_json(ref.kind, namespace, ref.name, operations)
    return str(after["metadata"]["resourceVersion"])


def _list_replacements(
    desired: Mapping[str, Any], live: Mapping[str, Any], path: str
) -> Iterator[Raw]:
    for name, want in desired.items():
        have, here = live.get(name), f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
        if isinstance(want, Mapping) and isinstance(have, Mapping):
            yield from _list_replacements(want, have, here)
        elif isinstance(want, list) and isinstance(have, list) and not _covers(have, want):
            yield {"op": "replace", "path": here, "value": want}


def _covers(have: Any, want: Any) -> bool:
    """Everything wanted is there, lists item by item; what defaulting added does not count."""
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        return all(name in have and _covers(have[name], value) for name, value in want.items())
    if isinstance(want, list) and isinstance(have, list):
        return len(have) == len(want) and all(map(_covers, have, want))
    return bool(have == want)


def _lock(live: Raw) -> Raw:
    """Replacing it by itself is the optimistic lock: another version answers 409 (a failed `test` would be 422)."""
    version = live["metadata"]["resourceVersion"]
    return {"op": "replace", "path": "/metadata/resourceVersion", "value": version}


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
