"""A real Kubernetes cluster for tests, wherever they run.

`start` gives one, by the environment variable E2E_CLUSTER: `local` (default), a node that is brought up on
this machine in its own network namespace and disappears with the run; or `current`, what KUBECONFIG
points at. Both are the same small `Cluster` to whoever uses them. Beside it: `programs` (what is built),
`images` (what is loaded), `apiserver` (an API server alone, for tests that need no node).
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from e2e.cluster.errors import ClusterError, TimedOut, Unavailable

__all__ = ["Cluster", "ClusterError", "TimedOut", "Unavailable", "start"]


class Cluster(Protocol):
    """A cluster with a Ready node, a default StorageClass and DNS."""

    name: str
    kubeconfig: Path
    is_here: bool
    """Its node is on this machine: processes of pods can be seen, addresses of pods and services reached."""
    outlives_the_run: bool
    """`stop` leaves it: whoever makes something in it removes it."""

    def load_image(self, archive: Path) -> None:
        """Give every node the image in this archive."""

    def volume_path(self, namespace: str, claim: str) -> Path | None:
        """Where the files of a claim are on this machine; None where that cannot be said."""

    def node_exec(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's network namespace; `Unavailable` where there is no such thing."""

    def stop(self) -> None:
        """End it, if it was started here."""


def start(provider: str | None = None, images: Sequence[Path] = ()) -> Cluster:
    """Bring a cluster up and load the images; `Unavailable` says what this machine lacks.

    A local one ends when this process does, unless KEEP is set.
    """
    # Imported here: an API server alone must not need what a node needs.
    from e2e.cluster import current, local

    match provider or os.environ.get("E2E_CLUSTER") or "local":
        case "local":
            return local.start(images, kept=bool(os.environ.get("KEEP")))
        case "current":
            return current.start(images)
        case unknown:
            msg = f"E2E_CLUSTER is {unknown!r}; there are 'local' and 'current'"
            raise ClusterError(msg)
