"""The API server as this operator uses it: dictionaries in, dictionaries out, errors as one small tree.

`kubernetes.aio.client.ApiClient` is used for what it is good at (authentication, TLS, proxies, token refresh); its models
and API classes are never imported (26 MiB and half a second). The kinds stand in a static table, so nothing is discovered
and no cache file is written.

What the process may do (watch is the informer's). The chart grants exactly this, and the tests run the operator with it:

| group | resource | verbs | scope |
|---|---|---|---|
| pullthrough.dev | pullthroughcaches | get list watch | cluster |
| pullthrough.dev | pullthroughcaches/status | patch | cluster |
| core | services configmaps persistentvolumeclaims | get list watch create patch delete | cluster |
| core | pods | get list watch create | cluster |
| core | events | create | cluster |
| apps | statefulsets | get list watch create patch delete | cluster |
| policy | poddisruptionbudgets | get list watch create patch delete | cluster |
| batch | jobs | get list watch create delete | cluster |
| coordination.k8s.io | leases | get create update | own namespace |

Server-side apply and JSON patches are `patch`. Pods are "created" as a dry run only: would a migration's be admitted?
There is no verb on Secrets, namespaces, or definitions of resources.
Where the admission plugin OwnerReferencesPermissionEnforcement is on (OpenShift), blockOwnerDeletion in an owner
reference needs `update` on pullthroughcaches/finalizers as well.

Errors:

    ClusterError
    +-- Unreachable              no answer: refused, reset, timed out
    +-- ApiError                 an answer that is a refusal: status, reason, message, causes
        +-- NotFound             404
        +-- AlreadyExists        409: a POST met an object of that name
        +-- Conflict             409, or 422 about the uid: a precondition did not hold
        +-- Throttled            429, after all retries
        +-- Refused              400, 403 or 422: the same request will be refused again
            +-- NamespaceTerminating
"""

from __future__ import annotations

import asyncio
import json
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp

from pullthrough.models import constants

Raw = dict[str, Any]

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

PAGE: Final = 500
THROTTLED_TRIES: Final = 5
LONGEST_RETRY_AFTER: Final = 15.0
"""Seconds; a longer advice is shortened, since the queue's back-off comes on top of it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One line of the static table of kinds."""

    api_version: str
    plural: str

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, of one object, or of its subresource."""
        root = "/apis/" if "/" in self.api_version else "/api/"
        scope = f"/namespaces/{namespace}" if namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{self.api_version}{scope}/{self.plural}{tail}"


CHILDREN: Final[Mapping[str, Resource]] = types.MappingProxyType(
    {
        "StatefulSet": Resource("apps/v1", "statefulsets"),
        "Service": Resource("v1", "services"),
        "ConfigMap": Resource("v1", "configmaps"),
        "PersistentVolumeClaim": Resource("v1", "persistentvolumeclaims"),
        "Job": Resource("batch/v1", "jobs"),
        "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
        "Pod": Resource("v1", "pods"),
    }
)
"""Every kind that is watched, by our managed-by label on the server's side."""

KINDS: Final[Mapping[str, Resource]] = types.MappingProxyType(
    {
        constants.KIND: Resource(constants.API_VERSION, constants.PLURAL),
        **CHILDREN,
        "Event": Resource("v1", "events"),
        "Lease": Resource("coordination.k8s.io/v1", "leases"),
    }
)

MANAGED: Final = f"{constants.LABEL_MANAGED_BY}={constants.FIELD_MANAGER}"
"""The label selector of everything that is ours."""


class ClusterError(Exception):
    """Something between us and the cluster's state went wrong."""


class Unreachable(ClusterError):
    """The API server gave no answer."""


class ApiError(ClusterError):
    """The API server answered with a refusal."""

    def __init__(self, status: int, reason: str, message: str, causes: Sequence[str] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)


class NotFound(ApiError):
    """404."""


class AlreadyExists(ApiError):
    """409 on POST: somebody, perhaps we a moment ago, made an object of that name."""


class Conflict(ApiError):
    """409: the object is not the one, or not in the version, that the decision was made for."""


class Throttled(ApiError):
    """429: the server asked us to come back later, more often than we had patience for."""


class Refused(ApiError):
    """400, 403, 422: quota, policy, admission, validation. The same request would be refused again."""


class NamespaceTerminating(Refused):
    """403 because the namespace is going away: nothing can be created there any more."""


def error_from(status: int, data: bytes) -> ApiError:
    """The error of the tree for one answer."""
    try:
        body = json.loads(data)
        reason, message = body.get("reason", ""), body.get("message", "")
        details = body.get("details") or {}
        found = details.get("causes") or ()
        causes = [cause.get("reason", "") for cause in found]
        is_another_object = "metadata.uid" in [cause.get("field") for cause in found]
    except (ValueError, AttributeError):
        reason, message, causes = "", data[:200].decode(errors="replace"), []
        is_another_object = False
    match status:
        case 404:
            return NotFound(status, reason, message, causes)
        case 409 if reason == "AlreadyExists":
            return AlreadyExists(status, reason, message, causes)
        case 409:
            return Conflict(status, reason, message, causes)
        case 422 if is_another_object:
            # an apply to an object that was deleted and made anew: "metadata.uid: field is immutable"
            return Conflict(status, reason, message, causes)
        case 429:
            return Throttled(status, reason, message, causes)
        case 403 if "NamespaceTerminating" in causes:
            return NamespaceTerminating(status, reason, message, causes)
        case 400 | 403 | 422:
            return Refused(status, reason, message, causes)
        case _:
            return ApiError(status, reason, message, causes)


class KubeClient:
    """One connection pool to the API server, with a bound on requests in flight and a time limit on each."""

    def __init__(
        self,
        *,
        max_in_flight: int = 20,
        timeout: float = 30.0,
        guard: Callable[[], None] | None = None,
    ) -> None:
        self._slots = asyncio.Semaphore(max_in_flight)
        self._max_in_flight = max_in_flight
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._guard = guard
        """Called before every request that writes: whoever lost the Lease must not come that far."""
        self._api: Any = None
        self.writes = 0
        """Requests sent that could change something, for the metrics and for tests."""

    async def __aenter__(self) -> Self:
        from kubernetes.aio import client, config  # some 45 MiB: only where it is used

        configuration = client.Configuration()
        files = os.environ.get("KUBECONFIG")
        if files or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            # Named, because the library reads the variable once, when it is imported.
            await config.load_kube_config(
                config_file=files or None, client_configuration=configuration
            )
        else:
            config.load_incluster_config(client_configuration=configuration)
        configuration.connection_pool_maxsize = self._max_in_flight
        self._api = client.ApiClient(configuration=configuration)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    async def get(self, kind: str, namespace: str, name: str) -> Raw | None:
        """The object as it is now, or None."""
        try:
            return await self.request("GET", KINDS[kind].path(namespace, name))
        except NotFound:
            return None

    async def list_all(self, kind: str, selector: str = "", namespace: str = "") -> list[Raw]:
        """All objects of a kind in the cluster, or in one namespace, page by page, with the kind that lists leave out."""
        resource = KINDS[kind]
        items: list[Raw] = []
        token = ""
        while True:
            query = [("limit", str(PAGE))]
            query += [("labelSelector", selector)] if selector else []
            query += [("continue", token)] if token else []
            page = await self.request("GET", resource.path(namespace), query=query)
            about = {"apiVersion": resource.api_version, "kind": kind}
            items += [{**about, **item} for item in page.get("items") or ()]
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return items

    async def create(self, desired: Mapping[str, Any], *, dry_run: bool = False) -> Raw:
        """POST; AlreadyExists where somebody was faster. A dry run is admitted or refused, and nothing is made."""
        query = [("fieldManager", constants.FIELD_MANAGER)]
        query += [("dryRun", "All")] if dry_run else []
        return await self.request(
            "POST",
            _resource(desired).path(desired["metadata"]["namespace"]),
            body=dict(desired),
            query=query,
        )

    async def apply(self, desired: Mapping[str, Any]) -> Raw:
        """Server-side apply, taking over what others set; uid or resourceVersion in its metadata are preconditions."""
        meta = desired["metadata"]
        return await self.request(
            "PATCH",
            _resource(desired).path(meta["namespace"], meta["name"]),
            body=dict(desired),
            query=[("fieldManager", constants.FIELD_MANAGER), ("force", "true")],
            content_type=APPLY,
        )

    async def patch_json(
        self, kind: str, namespace: str, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Raw:
        """JSON patch, all or nothing."""
        return await self.request(
            "PATCH",
            KINDS[kind].path(namespace, name),
            body=list(operations),
            query=[("fieldManager", constants.FIELD_MANAGER)],
            content_type=JSON_PATCH,
        )

    async def replace(self, desired: Mapping[str, Any]) -> Raw:
        """PUT; Conflict unless the resourceVersion in it is still the current one."""
        meta = desired["metadata"]
        return await self.request(
            "PUT",
            _resource(desired).path(meta["namespace"], meta["name"]),
            body=dict(desired),
            query=[("fieldManager", constants.FIELD_MANAGER)],
        )

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, resource_version: str = ""
    ) -> Raw:
        """Delete in the background: a bare DELETE of a Job would leave its pods behind."""
        preconditions = {"uid": uid}
        if resource_version:
            preconditions["resourceVersion"] = resource_version
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": preconditions,
        }
        return await self.request("DELETE", KINDS[kind].path(namespace, name), body=options)

    async def patch_status(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> Raw:
        """Merge patch on the status subresource; Conflict if a resourceVersion in it is not the current one."""
        return await self.request(
            "PATCH",
            KINDS[kind].path(namespace, name, "status"),
            body=dict(patch),
            query=[("fieldManager", constants.FIELD_MANAGER)],
            content_type=MERGE,
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Sequence[tuple[str, str]] = (),
        content_type: str = JSON,
    ) -> Raw:
        """One request and its answer; waits where the server says 429 with Retry-After."""
        tries = 0
        while True:
            tries += 1
            async with self._slots:
                if method != "GET":
                    self.writes += 1
                    if self._guard is not None:
                        self._guard()
                status, retry_after, data = await self._send(
                    method, path, body, query, content_type
                )
            if 200 <= status <= 299:
                answer: Raw = json.loads(data) if data else {}
                return answer
            if status != 429 or retry_after is None or tries >= THROTTLED_TRIES:
                raise error_from(status, data)
            await asyncio.sleep(min(retry_after, LONGEST_RETRY_AFTER))

    async def _send(
        self,
        method: str,
        path: str,
        body: Any,
        query: Sequence[tuple[str, str]],
        content_type: str,
    ) -> tuple[int, float | None, bytes]:
        try:
            serialized = await self._api.param_serialize(
                method,
                path,
                query_params=list(query),
                body=body,
                auth_settings=["BearerToken"],
                header_params={"Accept": JSON, "Content-Type": content_type},
            )
            answer = await self._api.call_api(*serialized, _request_timeout=self._timeout)
            data: bytes = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            msg = f"{method} {path}: {type(error).__name__}: {error}"
            raise Unreachable(msg) from error
        return answer.status, _seconds(answer.getheader("Retry-After")), data


def _resource(obj: Mapping[str, Any]) -> Resource:
    return KINDS[obj["kind"]]


def _seconds(header: str | None) -> float | None:
    return float(header) if header is not None and header.isdecimal() else None
