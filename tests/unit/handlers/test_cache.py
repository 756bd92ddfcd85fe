"""The informer's cache. What contributes: kind · labels · uid and resourceVersion against what is held · a whole LIST."""

from __future__ import annotations

from typing import Any

from pullthrough.handlers.cache import InformerCache
from pullthrough.models import constants
from pullthrough.models.snapshot import Ref
from pullthrough.reconcile import Key

KEY, OTHER = Key("n", "c"), Key("n", "other")
CONFIG = Ref("ConfigMap", "x")


def parent(name: str = "c", version: int = 1) -> dict[str, Any]:
    meta = {"namespace": "n", "name": name, "uid": name, "resourceVersion": str(version)}
    return {"kind": constants.KIND, "metadata": meta}


def child(cache: str | None = "c", version: int = 1, uid: str = "u", **meta: Any) -> dict[str, Any]:
    labels = {constants.LABEL_MANAGED_BY: constants.FIELD_MANAGER}
    if cache is not None:
        labels[constants.LABEL_CACHE] = cache
    about = {"namespace": "n", "name": "x", "uid": uid, "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "metadata": {**about, "labels": labels, **meta}}


def test_a_child_belongs_to_the_cache_that_its_label_names() -> None:
    cache = InformerCache()
    assert cache.put(child()) == {KEY}
    assert cache.children(KEY) == {CONFIG: child()}
    assert cache.children(OTHER) == {}


def test_the_same_name_in_another_namespace_is_another_cache() -> None:
    cache = InformerCache()
    assert cache.put(child(namespace="m")) == {Key("m", "c")}
    assert cache.children(KEY) == {}


def test_what_is_not_ours_is_not_held() -> None:
    cache = InformerCache()
    foreign = child()
    foreign["metadata"]["labels"].pop(constants.LABEL_MANAGED_BY)
    assert cache.put(foreign) == set()
    assert cache.put(child(cache=None)) == set()
    assert cache.identities() == set()


def test_a_child_that_changes_its_label_leaves_one_cache_and_joins_the_other() -> None:
    cache = InformerCache()
    cache.put(child())
    assert cache.put(child("other", version=2)) == {KEY, OTHER}
    assert cache.children(KEY) == {}
    assert CONFIG in cache.children(OTHER)


def test_a_child_that_loses_its_label_is_dropped() -> None:
    cache = InformerCache()
    cache.put(child())
    assert cache.put(child(cache=None, version=2)) == {KEY}
    assert cache.children(KEY) == {}


def test_an_older_event_does_not_undo_a_newer_write() -> None:
    cache = InformerCache()
    cache.put(child(version=10))
    assert cache.put(child(version=9)) == {KEY}
    assert cache.children(KEY)[CONFIG]["metadata"]["resourceVersion"] == "10"
    cache.put(parent(version=10))
    cache.put(parent(version=9))
    held = cache.cache(KEY)
    assert held is not None
    assert held["metadata"]["resourceVersion"] == "10"


def test_an_object_made_anew_replaces_the_old_one_whatever_its_version() -> None:
    cache = InformerCache()
    cache.put(child(version=10))
    cache.put(child(version=9, uid="new"))
    assert cache.children(KEY)[CONFIG]["metadata"]["uid"] == "new"


def test_of_managed_fields_only_our_update_record_is_kept() -> None:
    records = [
        {"manager": constants.FIELD_MANAGER, "operation": "Update", "fieldsV1": {"f:data": {}}},
        {"manager": constants.FIELD_MANAGER, "operation": "Update", "subresource": "status"},
        {"manager": constants.FIELD_MANAGER, "operation": "Apply"},
        {"manager": "kubectl", "operation": "Update"},
    ]
    cache = InformerCache()
    cache.put(child(managedFields=records))
    kept = cache.children(KEY)[CONFIG]["metadata"]["managedFields"]
    assert kept == [{"manager": constants.FIELD_MANAGER, "operation": "Update"}]
    cache.put(child(version=2, managedFields=records[1:]))
    assert "managedFields" not in cache.children(KEY)[CONFIG]["metadata"]


def test_what_is_dropped_is_gone_and_says_whose_pass_should_run() -> None:
    cache = InformerCache()
    cache.put(parent())
    cache.put(child())
    assert cache.drop("ConfigMap", "n", "x") == {KEY}
    assert cache.drop("ConfigMap", "n", "x") == set()
    assert cache.drop(constants.KIND, "n", "c") == {KEY}
    assert cache.cache(KEY) is None
    assert cache.identities() == set()


def test_children_outlive_their_cache_in_the_view() -> None:
    cache = InformerCache()
    cache.put(parent())
    cache.put(child())
    cache.drop(constants.KIND, "n", "c")
    assert CONFIG in cache.children(KEY), "a cache made anew must see what the old one left"


def test_a_list_drops_ghosts_but_nothing_that_came_after_it_began() -> None:
    cache = InformerCache()
    cache.put(child())
    cache.put(child("other", name="ghost"))
    known = cache.identities()
    cache.put(child(name="young"))
    assert cache.settle(known, [child(version=2)]) == {OTHER}
    assert set(cache.children(KEY)) == {CONFIG, Ref("ConfigMap", "young")}
    assert cache.children(KEY)[CONFIG]["metadata"]["resourceVersion"] == "2"
    assert cache.children(OTHER) == {}


def test_what_a_pass_was_given_does_not_change_under_it() -> None:
    cache = InformerCache()
    cache.put(child())
    given = cache.children(KEY)
    cache.drop("ConfigMap", "n", "x")
    assert CONFIG in given
