"""Names of a cache's objects. A cache's name has at most 40 characters (a rule of the CRD), a member's suffix 3."""

from __future__ import annotations

import hashlib


def service(cache: str) -> str:
    """The Service over all members: at most 40 characters, a DNS label (the CRD demands a leading letter)."""
    return cache


def member(cache: str, ordinal: int) -> str:
    """Claim, StatefulSet and Service of one member: at most 43 characters.

    A StatefulSet's name must stay below 53: its pods carry a label of the name and a hash
    (kubernetes issue 64023).
    """
    return f"{cache}-{ordinal}"


def pod(cache: str, ordinal: int) -> str:
    """The one pod of a member's StatefulSet."""
    return f"{member(cache, ordinal)}-0"


def config_map(cache: str, content: str) -> str:
    """Named by its content: a changed configuration is another object, hence a rollout. At most 58 characters."""
    return f"{cache}-config-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def migration_job(cache: str, ordinal: int, request: str, attempt: int) -> str:
    """One attempt at one request: at most 60 characters, so that its pods' names still fit a label."""
    return f"{member(cache, ordinal)}-gc-{request[:8]}-{attempt}"


def endpoint(cache: str, namespace: str, port: int) -> str:
    """Where the cache is reached from inside the cluster."""
    return f"{cache}.{namespace}.svc:{port}"
