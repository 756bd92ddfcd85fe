"""Kubernetes Events about a cache: what `kubectl describe` shows below the status."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pullthrough.cluster.client import Raw
from pullthrough.models import constants
from pullthrough.models.plan import Event

LONGEST_MESSAGE: Final = 1024
"""Bytes; the API server refuses longer ones."""


def event_object(cache: Mapping[str, Any], event: Event, now: datetime) -> Raw:
    """The object to post; its name is random, as with every recorder of events."""
    meta = cache["metadata"]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    message = event.message.encode()[:LONGEST_MESSAGE].decode(errors="ignore")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": meta["namespace"],
            "name": f"{meta['name']}.{uuid.uuid4().hex[:16]}",
        },
        "involvedObject": {
            "apiVersion": constants.API_VERSION,
            "kind": constants.KIND,
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "type": event.type,
        "reason": event.reason,
        "message": message,
        "source": {"component": constants.FIELD_MANAGER},
        "reportingComponent": constants.FIELD_MANAGER,
        "reportingInstance": "",
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
