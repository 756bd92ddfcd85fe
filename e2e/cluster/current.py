"""Provider `current`: the cluster that KUBECONFIG points at, of whatever kind; only when asked for by name.

It is never stopped and never changed but through the API. Images get there by the command in
E2E_LOAD_IMAGE, which is given the archive ("kind load image-archive"); without it they must be there.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import local
from e2e.cluster.commands import run
from e2e.cluster.errors import Unavailable


class CurrentCluster:
    """Somebody's cluster. Where it is one of `local`, what only that can do is passed on to it."""

    name = "current"
    outlives_the_run = True

    def __init__(self, kubeconfig: Path, ours: local.LocalCluster | None) -> None:
        """Nothing is asked of the cluster here."""
        self.kubeconfig = kubeconfig
        self.is_here = ours is not None
        self._ours = ours

    def load_image(self, archive: Path) -> None:
        """Hand the archive to the command that loads images; without one, trust that it is there."""
        if self._ours is not None:
            self._ours.load_image(archive)
        elif command := shlex.split(os.environ.get("E2E_LOAD_IMAGE", "")):
            run([*command, archive], f"loading {archive.name}", within=600)

    def volume_path(self, namespace: str, claim: str) -> Path | None:
        """Where the claim's files are, if they are on this machine."""
        return None if self._ours is None else self._ours.volume_path(namespace, claim)

    def node_exec(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's network namespace, where that is on this machine."""
        if self._ours is None:
            msg = "commands on the node need a cluster of the provider `local`"
            raise Unavailable(msg)
        return self._ours.node_exec(argv)

    def stop(self) -> None:
        """Nothing: whoever started it stops it."""


def start(load: Sequence[Path] = ()) -> CurrentCluster:
    """Take the caller's cluster and give it these images."""
    chosen = os.environ.get("KUBECONFIG", "")
    if not chosen or not Path(chosen).is_file():
        msg = f"E2E_CLUSTER=current needs KUBECONFIG to name a file, and it is {chosen!r}"
        raise Unavailable(msg)
    kubeconfig = Path(chosen).resolve()
    ours = [each for each, _ in local.living() if each.kubeconfig.resolve() == kubeconfig]
    cluster = CurrentCluster(kubeconfig, ours[0] if ours else None)
    for archive in load:
        cluster.load_image(archive)
    return cluster
