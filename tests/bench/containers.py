"""When containers of a local cluster's node started and ended: a pod's status knows whole seconds only, and what is
measured here is often shorter than one.
"""

from __future__ import annotations

import json
import subprocess
import threading
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMESPACE = "k8s.io"


class Containers:
    """Listens to containerd from entering the context until leaving it. Times are as `time.time` has them."""

    def __init__(self, socket: Path) -> None:
        """`socket` is where the node's containerd listens."""
        self._command = ["ctr", f"--address={socket}", f"--namespace={_NAMESPACE}", "events"]
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def __enter__(self) -> Containers:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._listen, name="containers", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(10)
        self._thread.join(10)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # 2026-01-31 23:59:59.123456789 +0000 UTC k8s.io /tasks/exit {"container_id": ...}
            when, _, rest = line.partition(f" {_NAMESPACE} ")
            topic, _, event = rest.partition(" ")
            if topic in {"/tasks/start", "/tasks/exit"}:
                self._note(topic, _parse_time(when), json.loads(event))

    def _note(self, topic: str, when: float, event: dict[str, Any]) -> None:
        container = event["container_id"]
        if topic == "/tasks/start":
            self.started[container] = when
        elif event["id"] == container:  # else a command that was run in it
            self.ended[container] = when


def _parse_time(text: str) -> float:
    day, clock, zone, *_ = text.split(" ")
    return datetime.fromisoformat(f"{day}T{clock}{zone}").timestamp()
