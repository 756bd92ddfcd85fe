"""Debian packages that the cluster and the images need, installed where that is possible.

A package counts as there when what we use of it is there: on a machine with another vendor's containerd
or CNI plugins, installing Debian's would remove those.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.cluster.errors import Unavailable
from e2e.cluster.programs import locked, say

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
"""Where Debian and everybody else put the CNI plugins."""

_COMMANDS = {
    "containerd": ("containerd", "ctr"),
    "runc": ("runc",),
    "iptables": ("iptables",),
    "iproute2": ("ip",),
    "procps": ("sysctl",),
    "util-linux": ("nsenter", "mount", "umount"),
    "mount": ("mount", "umount"),
    "buildah": ("buildah",),
    "mmdebstrap": ("mmdebstrap",),
    "openssl": ("openssl",),
    "busybox-static": ("busybox",),
}
_POLICY = Path("/usr/sbin/policy-rc.d")


def ensure_packages(names: Sequence[str]) -> None:
    """Install what is missing; `Unavailable` says what, where this user or machine cannot install."""
    if not (missing := [name for name in names if not _is_there(name)]):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        msg = f"these Debian packages are missing: {' '.join(missing)}"
        raise Unavailable(msg)
    with locked("packages"), _no_daemons():
        say(f"installing Debian packages: {' '.join(missing)}")
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", "--no-remove", *missing)
    if still := [name for name in missing if not _is_there(name)]:
        msg = f"these Debian packages were installed and do not have what is needed: {' '.join(still)}"
        raise Unavailable(msg)


def cni_folder() -> Path:
    """Where this machine's CNI plugins are."""
    return next((folder for folder in CNI_FOLDERS if (folder / "bridge").exists()), CNI_FOLDERS[0])


def _is_there(package: str) -> bool:
    if package == "containernetworking-plugins":
        return (cni_folder() / "bridge").exists()
    return all(shutil.which(command) for command in _COMMANDS[package])


def _apt(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # A source that cannot be reached must not matter as long as the packages come from another.
    if done.returncode != 0 and arguments[0] != "update":
        msg = f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-2000:]}"
        raise Unavailable(msg)


@contextlib.contextmanager
def _no_daemons() -> Iterator[None]:
    """Debian starts a daemon when it installs one; 101 from this script means: do not."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
