"""One pass for one cache: see, decide, perform.

1. See: the informer's view of the cache and its children, with `now`, as one snapshot.
2. Decide: `plan` is pure. Where it wants to know more (an absence confirmed by a live read, a keeper's report), that is
   looked up and everything is decided again; at most three rounds, after which nothing that is unconfirmed is done.
3. Perform the actions in the plan's order, each with its preconditions; the first that fails ends the pass.
4. Write the status once, and only where it differs; then post the events.
5. Say when to look again.

A pass that fails is tried again by the queue. What a failure showed to be out of date in the view is read live first,
so that the next pass does not decide from it again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from pullthrough.cluster import apply, client, events
from pullthrough.cluster.client import KubeClient, Raw
from pullthrough.models import constants
from pullthrough.models.plan import Delete, DryRun, Event, Plan
from pullthrough.models.settings import Settings
from pullthrough.models.snapshot import KeeperReport, Object, Ref, Refusal, Snapshot
from pullthrough.planning import pods

log = logging.getLogger(__name__)

ROUNDS: Final = 3
TERMINATING_FOR: Final = 60.0
"""Seconds for which a namespace counts as terminating after the API server said so; one may be made anew."""
REPEAT_EVENT_AFTER: Final = 600.0
UNCONFIRMED_RETRY: Final = 2.0


class Key(NamedTuple):
    """Which cache."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class View(Protocol):
    """What the informer has shown so far; a hint."""

    def cache(self, key: Key) -> Object | None:
        """The custom resource."""

    def children(self, key: Key) -> Mapping[Ref, Object]:
        """Everything that carries our label for this cache."""

    def put(self, obj: Object) -> object:
        """Something was read or written by ourselves, before the watch shows it."""

    def drop(self, kind: str, namespace: str, name: str) -> object:
        """Something was found to be gone."""


class Reader(Protocol):
    """Who asks the keepers."""

    async def read(self, pod: Object | None) -> KeeperReport:
        """The report of the keeper in that pod."""


class RefusedAction(Exception):
    """An action was refused by quota, policy or validation; `error` is the API server's."""

    def __init__(self, refusal: Refusal, error: client.Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.error = error


PlanFunction = Callable[[Mapping[str, Any], Snapshot, Settings], Plan]


def utc_now() -> datetime:
    """The one place that asks the clock what time it is for decisions."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Memory:
    """What one process remembers of a cache; losing it costs a few reads or a repeated event, nothing else."""

    foreign: set[Ref] = field(default_factory=set)
    """Objects that bear a name of ours but not our label: no watch shows them, so each pass reads them."""
    said: dict[tuple[str, str], float] = field(default_factory=dict)
    """Reason and message of events, and when they were posted."""
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A plan, and what it was made from."""

    cache: Object
    snapshot: Snapshot
    plan: Plan
    rounds: int
    is_confirmed: bool


class Reconciler:
    """Runs passes. The queue sees to it that no two of them are about one cache at a time."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        view: View,
        reports: Reader,
        plan: PlanFunction,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._view, self._reports = kube, view, reports
        self._plan, self._settings = plan, settings
        self._clock, self._monotonic = clock, monotonic
        self._memories: dict[Key, Memory] = {}
        self._terminating: dict[str, float] = {}

    async def reconcile(self, key: Key) -> float | None:
        """One pass; seconds until the next that the plan asks for."""
        cache = self._view.cache(key)
        if cache is None:
            self._memories.pop(key, None)
            return None
        memory = self._memories.setdefault(key, Memory())
        decision = await self._decide(key, cache, memory)
        self._log(key, decision, memory)
        if not decision.is_confirmed:
            return UNCONFIRMED_RETRY
        try:
            await self._perform(key, decision, memory)
        except client.NamespaceTerminating:
            self._terminating[key.namespace] = self._monotonic() + TERMINATING_FOR
            return TERMINATING_FOR
        except RefusedAction as refused:
            # Quota, policy, validation: only a person can help, so it is said where people look.
            told = self._decide_again(decision, refused.refusal)
            await self._write_status(key, told)
            await self._post(key, told, told.plan.events, memory)
            raise refused.error from None
        await self._write_status(key, decision)
        await self._post(key, decision, decision.plan.events, memory)
        return decision.plan.requeue_after

    # -- see and decide ------------------------------------------------------------------------------------------------

    async def _decide(self, key: Key, cache: Object, memory: Memory) -> Decision:
        snapshot = await self._see(key, memory)
        read: set[Ref] = set()
        asked: set[str] = set()
        looked: set[str] = set()
        plan = self._plan(cache, snapshot, self._settings)
        rounds = 1
        while rounds < ROUNDS:
            unread = [ref for ref in plan.confirm if ref not in read]
            unasked = [member for member in plan.wants_report if member not in asked]
            unlooked = [claim for claim in plan.wants_users if claim not in looked]
            if not unread and not unasked and not unlooked:
                break
            for ref in unread:
                live = await self._read(key, ref, memory)
                if ref == _ref_of_cache(key):
                    cache = live if live is not None else cache
                else:
                    snapshot = _with_object(snapshot, ref, live)
            for member in unasked:
                report = await self._reports.read(snapshot.get("Pod", f"{member}-0"))
                snapshot = replace(snapshot, reports={**snapshot.reports, member: report})
            if unlooked:
                snapshot = replace(snapshot, users=await self._users(key, unlooked, snapshot))
            read.update(unread)
            asked.update(unasked)
            looked.update(unlooked)
            plan = self._plan(cache, snapshot, self._settings)
            rounds += 1
        is_confirmed = (
            read.issuperset(plan.confirm)
            and asked.issuperset(plan.wants_report)
            and looked.issuperset(plan.wants_users)
        )
        return Decision(
            cache=cache, snapshot=snapshot, plan=plan, rounds=rounds, is_confirmed=is_confirmed
        )

    def _decide_again(self, decision: Decision, refusal: Refusal) -> Decision:
        """For the status alone: what it says when an action was refused."""
        snapshot = replace(decision.snapshot, refusal=refusal)
        plan = self._plan(decision.cache, snapshot, self._settings)
        return replace(decision, snapshot=snapshot, plan=plan)

    async def _users(
        self, key: Key, claims: Sequence[str], snapshot: Snapshot
    ) -> dict[str, tuple[Object, ...]]:
        """Every pod of the namespace that names one of the claims; no watch shows other people's."""
        found = await self._kube.list_all("Pod", namespace=key.namespace)
        naming = {
            claim: tuple(pod for pod in found if pods.names_claim(pod, claim)) for claim in claims
        }
        return {**snapshot.users, **naming}

    async def _see(self, key: Key, memory: Memory) -> Snapshot:
        snapshot = Snapshot(
            now=self._clock(),
            objects=self._view.children(key),
            namespace_terminating=self._terminating.get(key.namespace, 0.0) > self._monotonic(),
        )
        for ref in sorted(memory.foreign):
            snapshot = _with_object(snapshot, ref, await self._read(key, ref, memory))
        return snapshot

    async def _read(self, key: Key, ref: Ref, memory: Memory) -> Raw | None:
        """A live read, which also brings the view up to date."""
        live = await self._kube.get(ref.kind, key.namespace, ref.name)
        memory.foreign.discard(ref)
        if live is None:
            self._view.drop(ref.kind, key.namespace, ref.name)
            return None
        self._view.put(live)
        is_watched = _is_labelled(live, key) or ref.kind == constants.KIND
        if not is_watched:
            memory.foreign.add(ref)
        return live

    # -- perform -------------------------------------------------------------------------------------------------------

    async def _perform(self, key: Key, decision: Decision, memory: Memory) -> None:
        for action in decision.plan.actions:
            ref = apply.ref_of(action)
            observed = decision.snapshot.objects.get(ref)
            try:
                after = await apply.perform(self._kube, key.namespace, action, observed)
            except (client.Conflict, client.AlreadyExists, client.NotFound) as error:
                await self._read(key, ref, memory)
                log.info(
                    "overtaken cache=%s action=%s object=%s/%s why=%s",
                    key,
                    type(action).__name__.lower(),
                    ref.kind,
                    ref.name,
                    error.message,
                )
                raise
            except client.NamespaceTerminating:
                raise
            except client.Refused as error:
                is_dry_run = isinstance(action, DryRun)
                raise RefusedAction(
                    Refusal(ref=ref, message=error.message, is_dry_run=is_dry_run), error
                ) from error
            log.info(
                "performed cache=%s action=%s object=%s/%s reason=%r",
                key,
                type(action).__name__.lower(),
                ref.kind,
                ref.name,
                action.reason,
            )
            if after is not None:
                self._view.put(after)
            elif isinstance(action, Delete):
                self._view.drop(ref.kind, key.namespace, ref.name)

    async def _write_status(self, key: Key, decision: Decision) -> None:
        wanted = decision.plan.status
        if wanted is None:
            return
        patch = merge_patch(decision.cache.get("status") or {}, wanted)
        if not patch:
            return
        version = decision.cache["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "status": patch}
        try:
            after = await self._kube.patch_status(constants.KIND, key.namespace, key.name, body)
        except client.NotFound:
            self._view.drop(constants.KIND, key.namespace, key.name)
        except client.Conflict:
            live = await self._kube.get(constants.KIND, key.namespace, key.name)
            if live is None:
                self._view.drop(constants.KIND, key.namespace, key.name)
            else:
                self._view.put(live)
            raise
        else:
            self._view.put(after)

    async def _post(
        self, key: Key, decision: Decision, said: tuple[Event, ...], memory: Memory
    ) -> None:
        """Events help people and decide nothing: one that cannot be posted is only logged."""
        now = self._monotonic()
        memory.said = {
            what: when for what, when in memory.said.items() if now - when < REPEAT_EVENT_AFTER
        }
        for event in said:
            what = (event.reason, event.message)
            if what in memory.said:
                continue
            try:
                obj = events.event_object(decision.cache, event, decision.snapshot.now)
                await self._kube.create(obj)
            except client.ClusterError as error:
                log.warning("event not posted cache=%s reason=%s error=%s", key, what[0], error)
            else:
                memory.said[what] = now

    def _log(self, key: Key, decision: Decision, memory: Memory) -> None:
        plan = decision.plan
        is_news = bool(plan.actions) or plan.summary != memory.summary
        memory.summary = plan.summary
        log.log(
            logging.INFO if is_news else logging.DEBUG,
            "decided cache=%s generation=%s rounds=%d actions=%d confirmed=%s requeue=%s summary=%r",
            key,
            decision.cache["metadata"].get("generation"),
            decision.rounds,
            len(plan.actions),
            str(decision.is_confirmed).lower(),
            "none" if plan.requeue_after is None else f"{plan.requeue_after:g}s",
            plan.summary,
        )


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Raw:
    """The JSON merge patch (RFC 7396) that makes `old` into `new`; empty where nothing differs."""
    patch: Raw = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := merge_patch(before, value):
                patch[name] = inner
        elif name not in old or before != value:
            patch[name] = value
    return patch


def _with_object(snapshot: Snapshot, ref: Ref, live: Raw | None) -> Snapshot:
    objects = {other: obj for other, obj in snapshot.objects.items() if other != ref}
    if live is None:
        absent = snapshot.confirmed_absent | {ref}
        return replace(snapshot, objects=objects, confirmed_absent=absent)
    absent = snapshot.confirmed_absent - {ref}
    return replace(snapshot, objects={**objects, ref: live}, confirmed_absent=absent)


def _is_labelled(obj: Mapping[str, Any], key: Key) -> bool:
    labels = obj["metadata"].get("labels") or {}
    is_managed = labels.get(constants.LABEL_MANAGED_BY) == constants.FIELD_MANAGER
    return is_managed and labels.get(constants.LABEL_CACHE) == key.name


def _ref_of_cache(key: Key) -> Ref:
    return Ref(constants.KIND, key.name)
