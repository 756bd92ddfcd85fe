"""Every name that more than one part must agree on: API group, labels, annotations, ports, paths.

Each name stands here once, with the guarantee that goes with it. Nothing here is computed.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "pullthrough.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "PullThroughCache"
PLURAL: Final = "pullthroughcaches"
SHORT_NAME: Final = "ptc"

FIELD_MANAGER: Final = "pullthrough-operator"
"""Our one name in server-side apply, and the ``managed-by`` label by which children are watched."""

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
"""Prefixed with ``ptc-``: Argo CD's label tracking would take an unprefixed value for an application of that name."""
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_CACHE: Final = f"{GROUP}/cache"
"""Name of the cache on every child, pods and claims included: how an event finds its cache."""
LABEL_MEMBER: Final = f"{GROUP}/member"
"""Ordinal of the member, "0" for the first."""

COMPONENT_REGISTRY: Final = "registry"
COMPONENT_MIGRATION: Final = "migration"

ANNOTATION_APPLIED: Final = f"{GROUP}/applied"
"""Hash of the desired object as last applied: makes removed fields count as a difference."""
ANNOTATION_TEMPLATE: Final = f"{GROUP}/template"
"""On a pod template: hash of everything the template was made from; `prepare --template` gets the same."""
ANNOTATION_ASKED: Final = f"{GROUP}/asked"
"""On a pod template: hash of what the spec asks for of it. Another hash means a roll; what the operator itself brings
(the keeper's image and settings) is no reason for one."""
ANNOTATION_PROVEN: Final = f"{GROUP}/proven"
"""On a StatefulSet: the template under which the canary was seen to expire."""
ANNOTATION_ADOPT_UNMARKED: Final = f"{GROUP}/adopt-unmarked"
"""On a claim, by its user: ``"true"`` lets `prepare` take over content of unknown origin. On a pod template: it was set."""
ANNOTATION_GC_MODE: Final = f"{GROUP}/gc-mode"
"""On a pod template: the mode (``Enabled``/``Disabled``) in which that pod's registry runs."""
ANNOTATION_GC_TTL: Final = f"{GROUP}/gc-ttl"
"""On a pod template: the ttl, as written in the spec, with which that pod's registry runs."""
ANNOTATION_MIGRATION: Final = f"{GROUP}/migration"
"""On a pod template: uid of the Job whose state `prepare` installs; kept while the mode stays Enabled."""
ANNOTATION_COLLECTED_BY: Final = f"{GROUP}/collected-by"
"""On a StatefulSet: RFC 3339 time by when all that was cached before the switch is gone."""
ANNOTATION_VERIFIED: Final = f"{GROUP}/verified"
"""On a StatefulSet: uid of the migration under which its pod was seen ready; later crashes never revert."""
ANNOTATION_MIGRATION_SECONDS: Final = f"{GROUP}/migration-seconds"
"""On a StatefulSet: how long the migration Job took; a `prepare` that takes ten times as long takes the switch back."""
ANNOTATION_PREPARED_AGAIN: Final = f"{GROUP}/prepared-again"
"""On a pod template: RFC 3339 time of the last restart made because the keeper found the TTL state lost."""
ANNOTATION_REVERTED: Final = f"{GROUP}/reverted"
"""On a StatefulSet: ``<cache generation>/<count>/<RFC 3339 time>`` of switches taken back."""
ANNOTATION_UPSTREAM_HOST: Final = f"{GROUP}/upstream-host"
"""On a claim: the upstream whose images lie on it. Never changed."""
ANNOTATION_USED_BY: Final = f"{GROUP}/used-by"
"""On a claim: ``<cache uid>/<member>``, the one registry that may run on it."""
ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"
"""On a migration Job: how many attempts were made before it, this one included; "1" for the first."""
ANNOTATION_REQUEST: Final = f"{GROUP}/request"
"""On a migration Job: hash of what it was made for (claim, ttl, spread, series, image, StatefulSet generation)."""

MOST_MEMBERS: Final = 32
"""Members of one cache at most."""

REGISTRY_PORT: Final = 5000
REGISTRY_DEBUG_PORT: Final = 5001
"""Bound to loopback: the registry serves pprof there (facts: handlers of net/http/pprof)."""
KEEPER_PORT: Final = 5002

CONTAINER_PREPARE: Final = "prepare"
CONTAINER_KEEPER: Final = "keeper"
CONTAINER_REGISTRY: Final = "registry"
CONTAINER_MIGRATE: Final = "migrate"

STORAGE_PATH: Final = "/var/lib/registry"
CONFIG_DIRECTORY: Final = "/etc/pullthrough"
CONFIG_FILE: Final = "config.yml"
RUN_AS: Final = 65532
"""uid, gid and fsGroup of every container we start."""

V2_TTL: Final = "168h"
"""Series 2.8 has a constant instead of a setting (v2.8.2:registry/proxy/proxymanifeststore.go:15)."""
