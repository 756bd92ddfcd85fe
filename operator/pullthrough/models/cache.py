"""The custom resource as it is read: frozen models of ``PullThroughCache``, and what follows from its fields.

These models are also where the CRD comes from (`pullthrough.models.crd`): every attribute docstring below is what
``kubectl explain`` shows, and every rule is what the API server refuses. Fields may be added later, never moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from pullthrough.models import constants, fields
from pullthrough.models.fields import (
    Checked,
    GoDuration,
    Json,
    Model,
    ObjectName,
    ResourceQuantity,
    Rule,
)

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_URL: Final = "https://registry-1.docker.io"
"""Docker Hub answers under another name than the one in image references."""

NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
NAME_RULE: Final = Rule(
    cel=f"self.metadata.name.matches(r'{NAME_PATTERN}')",
    message=(
        "metadata.name must be a DNS label of at most 40 characters that starts with a letter (lower-case letters, "
        "digits and '-'): Services, Pods and Jobs are named after it; choose a shorter or simpler name"
    ),
    holds=lambda cache: re.fullmatch(NAME_PATTERN, cache.name) is not None,
    field_path=".name",
)
"""On the root of the resource: the only place where a rule may look at metadata."""

_RESERVED_LABELS: Final = (f"{constants.GROUP}/", "app.kubernetes.io/")


class InvalidCache(Exception):
    """A resource that cannot be read: which field, and what to do about it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class GcMode(StrEnum):
    """Whether the registry expires what it caches."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Retention(StrEnum):
    """What becomes of a claim, with the words of a StatefulSet's retention policy."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Series(StrEnum):
    """Release series of the registry program: they differ in configuration and in how they expire."""

    V3 = "v3"
    V2 = "v2"


class AccessMode(StrEnum):
    """Access modes under which one registry can own its volume."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"


class Upstream(Model):
    """The registry that is cached."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.url) || !self.url.startsWith('http://') || self.insecure",
            message=(
                "an http:// upstream.url sends and receives everything unprotected: use https://, or set "
                "upstream.insecure: true to accept that"
            ),
            holds=lambda it: it.url is None or not it.url.startswith("http://") or it.insecure,
            field_path=".url",
        ),
    )

    host: Annotated[
        str,
        StringConstraints(min_length=1, max_length=259),
        Checked(
            Rule(
                cel=fields.matches(fields.HOST_PATTERN),
                message=(
                    "must be the registry's name as it stands in image references: a lower-case host[:port] such as "
                    "docker.io, without scheme and path; the address to fetch from goes to upstream.url"
                ),
                holds=lambda host: re.fullmatch(fields.HOST_PATTERN, host) is not None,
            ),
            Rule(
                cel="self == oldSelf",
                message=(
                    "upstream.host is immutable: what is stored belongs to it; create another PullThroughCache for "
                    "another registry"
                ),
            ),
        ),
    ]
    """Name of the upstream registry as it stands in image references: a lower-case host[:port], for example docker.io or
    registry.example.com:5000. Immutable: what is stored belongs to it."""

    url: (
        Annotated[
            str,
            StringConstraints(max_length=280),
            Checked(
                Rule(
                    cel=fields.matches(fields.URL_PATTERN),
                    message=(
                        "must be https://host[:port] (or http://host[:port] with insecure: true) and nothing more: no "
                        "path, query, fragment, user or password"
                    ),
                    holds=lambda url: re.fullmatch(fields.URL_PATTERN, url) is not None,
                )
            ),
        ]
        | None
    ) = None
    """Address to fetch from, https://host[:port] without path, query, user or password. Defaults to https://<host>, and to
    https://registry-1.docker.io for docker.io. May be changed, for example to a mirror of the same registry."""

    insecure: bool = False
    """Accepts an http:// url. Everything then travels unprotected: for registries on a trusted network only."""


class GarbageCollection(Model):
    """How long what was fetched is kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                f"!has(self.spread) || !self.spread.matches(r'{fields.DURATION_PATTERN}') || "
                f"!self.ttl.matches(r'{fields.DURATION_PATTERN}') || "
                "duration(self.spread) + duration(self.spread) <= duration(self.ttl)"
            ),
            message="gc.spread must be at most half of gc.ttl: shorten it, or leave it out to have it derived",
            holds=lambda it: (
                it.spread is None or 2 * fields.seconds(it.spread) <= fields.seconds(it.ttl)
            ),
            field_path=".spread",
        ),
    )

    mode: GcMode = GcMode.ENABLED
    """Enabled: everything cached is removed once it is older than ttl. Disabled: everything is kept. May be switched at any
    time: what was cached before the switch to Enabled is gone by the switch + ttl (status.collectedBy)."""

    ttl: Annotated[
        GoDuration,
        Checked(
            Rule(
                cel=f"!{fields.matches(fields.DURATION_PATTERN)} || duration(self) >= duration('1m')",
                message="gc.ttl must be at least 1m; to keep everything, set gc.mode: Disabled",
                holds=lambda ttl: fields.seconds(ttl) >= 60,
            )
        ),
    ] = "168h"
    """Time since an artifact was fetched from the upstream after which it is removed; pulls do not extend it. A Go duration
    of at least 1m, for example 168h (a week) or 90m."""

    spread: GoDuration | None = None
    """What a switch to Enabled finds already cached expires within this time before switch + ttl, so that not everything
    goes at one instant. A Go duration of at most half the ttl; derived from how much is cached if unset."""


class Volume(Model):
    """A PersistentVolumeClaim for each member."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            # On the parent: a rule on the optional field itself would not see it being added or removed.
            cel=(
                "has(self.storageClassName) == has(oldSelf.storageClassName) && "
                "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)"
            ),
            message=(
                "storage.volume.storageClassName is immutable, as it is on the claim: create another PullThroughCache to "
                "use another class"
            ),
            field_path=".storageClassName",
        ),
    )

    size: Annotated[
        str,
        StringConstraints(max_length=32),
        Checked(
            Rule(
                cel=(
                    f"{fields.matches(fields.QUANTITY_PATTERN)} && "
                    "quantity(self).isGreaterThan(quantity('0'))"
                ),
                message="must be a size greater than zero such as 50Gi or 500G",
                holds=lambda size: (
                    re.fullmatch(fields.QUANTITY_PATTERN, size) is not None
                    and re.search("[1-9]", size) is not None
                ),
            )
        ),
    ]
    """Size of each member's claim, for example 50Gi. May grow where the storage class allows it; a smaller size than the
    claim's is reported, not applied."""

    storage_class_name: (
        Annotated[
            str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)
        ]
        | None
    ) = None
    """StorageClass of the claims. Unset: the cluster's default class. Immutable."""

    access_mode: Annotated[
        AccessMode,
        Checked(
            Rule(
                cel="self == oldSelf",
                message=(
                    "storage.volume.accessMode is immutable, as it is on the claim: create another PullThroughCache to use "
                    "another mode"
                ),
            )
        ),
    ] = AccessMode.READ_WRITE_ONCE
    """Access mode of the claims. With ReadWriteOncePod no migration Job can run beside the registry: turning garbage
    collection on is then done by the next start alone. Immutable."""


class RetentionPolicy(Model):
    """What becomes of the claims, as in a StatefulSet."""

    when_deleted: Retention = Retention.RETAIN
    """When the cache is deleted. Retain: its claims stay, and a cache of the same name finds its content again. Delete: they
    go with it."""

    when_scaled: Retention = Retention.RETAIN
    """When a member is removed because replicas became smaller: Retain or Delete its claim."""


class Storage(Model):
    """Where the cached content lies. The kind of storage is immutable; `volume` is the only kind there is today."""

    volume: Volume
    """A PersistentVolumeClaim for each member."""

    retention_policy: RetentionPolicy = Field(default_factory=RetentionPolicy)
    """What becomes of the claims when the cache is deleted or scaled down."""


class Registry(Model):
    """The registry program that serves the cache."""

    image: Annotated[str, StringConstraints(pattern=r"^\S+$", max_length=512)] | None = None
    """Image of the registry (CNCF distribution), as in a container. Unset: the operator's default for the series."""

    series: Series = Series.V3
    """Release series that the image belongs to: v3 (3.x), or v2 (2.8.x, whose time to live is fixed at 168h)."""


class LocalReference(Model):
    """An object in the cache's own namespace."""

    name: ObjectName
    """Name of the object."""


class Resources(Model):
    """Compute resources, as in a container."""

    requests: Annotated[dict[str, ResourceQuantity], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """What is reserved for the container: cpu, memory, ephemeral-storage."""

    limits: Annotated[dict[str, ResourceQuantity], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """What the container may use at most. A memory limit that is too low for the number of cached artifacts is found by the
    migration before it is rolled out."""


class Toleration(Model):
    """A taint that the members' pods tolerate, as in a pod."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """Key of the taint; unset matches every key, with operator Exists."""

    operator: Literal["Exists", "Equal"] | None = None
    """How the key's value is compared: Equal (the default) or Exists."""

    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Value of the taint, for operator Equal."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; unset matches every effect."""

    toleration_seconds: fields.Int64 | None = None
    """How long a NoExecute taint is tolerated; unset: for ever."""


class PodTemplate(Model):
    """What users decide about the members' pods."""

    labels: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=63)]],
        Field(max_length=32),
        Checked(
            Rule(
                cel=(
                    "self.all(key, "
                    + " && ".join(f"!key.startsWith('{prefix}')" for prefix in _RESERVED_LABELS)
                    + ")"
                ),
                message=(
                    "podTemplate.labels cannot set labels under pullthrough.dev/ and app.kubernetes.io/: the operator finds "
                    "its pods by them; use a prefix of your own"
                ),
                holds=lambda labels: not any(key.startswith(_RESERVED_LABELS) for key in labels),
            )
        ),
    ] = Field(default_factory=dict)
    """Labels to add to the pods. Those under pullthrough.dev/ and app.kubernetes.io/ are the operator's."""

    annotations: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=4096)]],
        Field(max_length=32),
        Checked(
            Rule(
                cel=f"self.all(key, !key.startsWith('{constants.GROUP}/'))",
                message=(
                    "podTemplate.annotations cannot set annotations under pullthrough.dev/: the operator keeps its own there; "
                    "use a prefix of your own"
                ),
                holds=lambda annotations: (
                    not any(key.startswith(f"{constants.GROUP}/") for key in annotations)
                ),
            )
        ),
    ] = Field(default_factory=dict)
    """Annotations to add to the pods. Those under pullthrough.dev/ are the operator's."""

    resources: Resources = Field(default_factory=Resources)
    """Compute resources of the registry's container."""

    node_selector: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=63)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Labels that a node must have to run a member."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods tolerate."""

    affinity: Json = Field(default_factory=dict)
    """Affinity of the pods, as in a pod."""

    image_pull_secrets: Annotated[
        tuple[LocalReference, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Secrets in the cache's namespace with which the kubelet pulls the pods' images; not for the upstream."""

    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods; no token of it is mounted. Unset: default."""

    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods. Unset: the cluster's default."""


def _is_served_by_series(spec: Spec) -> bool:
    ttl = fields.seconds(spec.gc.ttl)
    return spec.registry.series is not Series.V2 or ttl == fields.seconds(constants.V2_TTL)


class Spec(Model):
    """What the user wants of a cache."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "self.registry.series != 'v2' || "
                f"!self.gc.ttl.matches(r'{fields.DURATION_PATTERN}') || "
                f"duration(self.gc.ttl) == duration('{constants.V2_TTL}')"
            ),
            message=(
                "registry.series v2 (2.8.x) has its time to live of 168h built in: leave gc.ttl at 168h, or use "
                "registry.series: v3"
            ),
            holds=_is_served_by_series,
            field_path=".gc.ttl",
        ),
    )

    upstream: Upstream
    """The registry that is cached."""

    gc: GarbageCollection = Field(default_factory=GarbageCollection)
    """How long what was fetched is kept."""

    replicas: Annotated[
        fields.Int64,
        Checked(
            Rule(
                cel=f"self >= 1 && self <= {constants.MOST_MEMBERS}",
                message=(
                    f"replicas must be between 1 and {constants.MOST_MEMBERS}: each member has its own storage and fetches "
                    "for itself; to stop a cache from changing use suspend, to end it delete it"
                ),
                holds=lambda replicas: 1 <= replicas <= constants.MOST_MEMBERS,
            )
        ),
    ] = 1
    """Number of members. Each has its own storage and fills itself: N members fetch everything N times and store it N times.
    With two or more, pulls go on while one of them is rolled, drained or lost."""

    storage: Storage
    """Where the cached content lies: exactly one kind of storage, which is immutable. Only volume exists now."""

    registry: Registry = Field(default_factory=Registry)
    """The registry program that serves the cache."""

    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """What you decide about the members' pods: resources, scheduling, labels, pull secrets."""

    suspend: bool = False
    """While true the operator touches nothing of this cache. What runs keeps running."""


class PullThroughCache(Model):
    """A pull-through cache of one upstream container registry."""

    rules: ClassVar[tuple[Rule, ...]] = (NAME_RULE,)

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    annotations: dict[str, str] = Field(default_factory=dict)
    deletion_timestamp: str | None = None
    spec: Spec

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read a resource as the API server gives it; raise InvalidCache naming the first field that cannot be read."""
        metadata = raw.get("metadata") or {}
        given = {name: metadata[name] for name in _METADATA if metadata.get(name) is not None}
        try:
            return cls.model_validate({**given, "spec": _without_nulls(raw.get("spec"))})
        except ValidationError as error:
            raise _invalid_cache(error) from error

    @property
    def upstream_url(self) -> str:
        """Where to fetch from: spec.upstream.url, or what follows from the host."""
        upstream = self.spec.upstream
        if upstream.url is not None:
            return upstream.url.rstrip("/")
        return DOCKER_HUB_URL if upstream.host == DOCKER_HUB else f"https://{upstream.host}"

    @property
    def ttl(self) -> str:
        """The time to live that the registry will use: series 2.8 has a constant instead of a setting."""
        return constants.V2_TTL if self.spec.registry.series is Series.V2 else self.spec.gc.ttl


_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "generation",
    "annotations",
    "deletionTimestamp",
)


def _without_nulls(value: Any) -> Any:
    """A null means "unset" to the API server, which then fills in the default; so does reading."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _invalid_cache(error: ValidationError) -> InvalidCache:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    value, problem = first["input"], _problem(first)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, fields.BrokenRule):
        for part in cause.field_path.split(".")[1:]:
            location.append(part)
            value = value.get(part) if isinstance(value, Mapping) else None
    if location[0] != "spec":
        location.insert(0, "metadata")
    field = ".".join(location)
    is_shown = value is not None and not isinstance(value, Mapping)
    return InvalidCache(field, f"{value!r}: {problem}" if is_shown else problem)


def _problem(details: ErrorDetails) -> str:
    """What is wrong and what to do."""
    match details["type"]:
        case "missing":
            return "is required: add it (kubectl explain ptc.spec --recursive shows every field)"
        case "value_error":
            return str(details["ctx"]["error"])
        case _:
            return f"{details['msg']}; correct it (kubectl explain ptc.spec shows what is possible)"
