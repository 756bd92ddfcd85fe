"""Debian packages that the cluster and the images need, installed where that is possible.

A package counts as there when what we use of it is there: on a machine with another vendor's containerd
or CNI plugins, installing Debian's would remove those.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.errors import Unavailable
from e2e.cluster.processes import Started, describe
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
_FILES = {
    # Ubuntu trusts only its own archive, and mmdebstrap looks here for the keys of Debian's.
    "debian-archive-keyring": (
        Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
        Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    ),
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_MARK = "# Put here for as long as pullthrough's tests install packages. By: "
_LONGEST_APT = 1800.0
_PATIENCE_WITH_OTHERS = "DPkg::Lock::Timeout=600"
"""Unattended upgrades hold dpkg's lock now and then, on Ubuntu after every boot."""


def ensure_packages(names: Sequence[str]) -> None:
    """Install what is missing; `Unavailable` says what, where this user or machine cannot install."""
    remove_leftover()
    if not (missing := [name for name in names if not _is_there(name)]):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        msg = f"these Debian packages are missing: {' '.join(missing)}"
        raise Unavailable(msg)
    with locked("packages"), no_daemons():
        say(f"installing Debian packages: {' '.join(missing)}")
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", "--no-remove", *missing)
    if still := [name for name in missing if not _is_there(name)]:
        msg = f"these Debian packages were installed and do not have what is needed: {' '.join(still)}"
        raise Unavailable(msg)


def cni_folder() -> Path:
    """Where this machine's CNI plugins are."""
    return next((folder for folder in CNI_FOLDERS if (folder / "bridge").exists()), CNI_FOLDERS[0])


@contextlib.contextmanager
def no_daemons(policy: Path = _POLICY) -> Iterator[None]:
    """Debian starts a daemon when it installs one; 101 from this script means: do not."""
    remove_leftover(policy)
    if policy.exists():
        yield
        return
    owner = json.dumps(asdict(describe(os.getpid(), "owner")))
    partial = policy.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(f"#!/bin/sh\n{_MARK}{owner}\nexit 101\n")
    partial.chmod(0o755)
    partial.rename(policy)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def remove_leftover(policy: Path = _POLICY) -> None:
    """Remove the script of a run that was killed: with it there, no package could ever start its daemon again."""
    try:
        lines = policy.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # none, or nothing of ours
        return
    for line in lines:
        if line.startswith(_MARK) and not _is_alive(line.removeprefix(_MARK)):
            say(f"removing {policy}, which a killed run left")
            with contextlib.suppress(OSError):  # not root, or another run was quicker
                policy.unlink()
            return


def _is_alive(owner: str) -> bool:
    try:
        return Started(**json.loads(owner)).is_alive()
    except (ValueError, TypeError):
        return False


def _is_there(package: str) -> bool:
    if package == "containernetworking-plugins":
        return (cni_folder() / "bridge").exists()
    if package in _FILES:
        return any(file.exists() for file in _FILES[package])
    return all(shutil.which(command) for command in _COMMANDS[package])


def _apt(*arguments: str) -> None:
    # A source that cannot be reached must not matter as long as the packages come from another.
    is_vital = arguments[0] != "update"
    run(
        ["apt-get", "-o", _PATIENCE_WITH_OTHERS, *arguments],
        f"apt-get {arguments[0]}",
        within=_LONGEST_APT,
        check=is_vital,
        error=Unavailable,
        environment={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
