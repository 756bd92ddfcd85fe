"""Images for the test cluster, built without pulling from anywhere.

The operator's comes from the repository's Dockerfile, the one that would be published; its base here is a Debian made
by mmdebstrap. The registries are the programs under test in an image without a shell (3.1.2) and in Debian (2.8.2).
Everything is kept in the cache folder by content: a call that finds nothing changed takes well under a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import debian, programs
from e2e.cluster.errors import ClusterError
from e2e.cluster.mounts import can_overlay

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of that suite: wheels are chosen for it, whatever runs the build."""
BASE_PACKAGES = "python3,python3-venv,ca-certificates,usr-is-merged"
"""usr-is-merged instead of usrmerge, which brings all of Perl, a third of the base."""
BASE_VERSION = "2"
"""Raise it when the way the base is made changes."""
KEPT_ARCHIVES = 4
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "linux_x86_64",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in an archive that containerd can import."""

    reference: str
    archive: Path
    """As `docker save` makes it: uncompressed, as packing would take longer than all else."""

    @property
    def size(self) -> int:
        """Bytes on a node; pulling takes about a quarter of it."""
        return self.archive.stat().st_size


def operator_image() -> Image:
    """`localhost/pullthrough:<hash of what it is made from>`."""
    sources = [ROOT / "Dockerfile", ROOT / "pyproject.toml", ROOT / "requirements" / "runtime.txt"]
    sources += sorted(
        p for p in (ROOT / "operator").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    )
    tag = _hash_of(sources, _base_tag())

    def build(reference: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            context = Path(folder)
            wheels(context / "build" / "wheels")
            shutil.copy(ROOT / "Dockerfile", context)
            _buildah(
                "build",
                f"--build-arg=BASE={base()}",
                # What did not change is taken from the last build, and is the same layer to a node.
                "--layers",
                "-t",
                reference,
                str(context),
            )

    return _image("localhost/pullthrough", tag, build)


def registry_image(version: str) -> Image:
    """`localhost/registry:3.1.2` or `:2.8.2`; takes `serve <file>` as arguments, as the published ones do."""
    binary = programs.ensure(f"registry-{version}")[f"registry-{version}"]
    parent = "scratch" if version.startswith("3") else base()

    def build(reference: str) -> None:
        _from_files(reference, parent, {binary: "/bin/registry"}, entrypoint="/bin/registry")

    return _image("localhost/registry", version, build)


def pause_image() -> Image:
    """`localhost/pause:2`, what holds a pod's namespaces: anything that waits and needs no library."""

    def build(reference: str) -> None:
        debian.ensure_packages(["busybox-static"])
        container = _buildah("from", "scratch").strip()
        _buildah("copy", "-q", "--chmod=755", container, _busybox(), "/busybox")
        wait = '["/busybox","tail","-f","/dev/null"]'
        _buildah("config", f"--entrypoint={wait}", "--cmd=", container)
        _buildah("commit", "-q", "--rm", container, reference)

    return _image("localhost/pause", "2", build)


def busybox_image() -> Image:
    """`localhost/busybox:1`, a shell and small tools for tests that need a pod of no importance."""

    def build(reference: str) -> None:
        debian.ensure_packages(["busybox-static"])
        container = _buildah("from", "scratch").strip()
        _buildah("copy", "-q", "--chmod=755", container, _busybox(), "/bin/busybox")
        _buildah("run", container, "/bin/busybox", "--install", "-s", "/bin")
        _buildah("config", '--cmd=["/bin/sh"]', "--env=PATH=/bin", container)
        _buildah("commit", "-q", "--rm", container, reference)

    return _image("localhost/busybox", "1", build)


def base() -> str:
    """The Debian that images here stand on, in buildah's store; made once (about half a minute)."""
    debian.ensure_packages(["buildah", "mmdebstrap"])
    reference = f"localhost/pullthrough-base:{_base_tag()}"
    archive = programs.cache_dir() / "images" / f"base-{_base_tag()}.tar"
    with programs.locked("base"):
        if not archive.exists():
            programs.say(f"making a Debian {SUITE} base for images (about half a minute)")
            archive.parent.mkdir(parents=True, exist_ok=True)
            partial = archive.with_suffix(".partial.tar")
            _run(
                [
                    "mmdebstrap",
                    "--variant=minbase",
                    "--mode=root",
                    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                    f"--include={BASE_PACKAGES}",
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-exclude=/usr/share/man/*",
                    "--dpkgopt=path-exclude=/usr/share/locale/*",
                    "--dpkgopt=path-exclude=/usr/share/info/*",
                    SUITE,
                    str(partial),
                ]
            )
            partial.rename(archive)
        if _buildah("images", "-q", reference, check=False).strip() == "":
            container = _buildah("from", "scratch").strip()
            _buildah("add", "-q", container, str(archive), "/")
            _buildah("commit", "-q", "--rm", container, reference)
    return reference


def wheels(target: Path) -> None:
    """Fill a folder with the wheels the Dockerfile needs (`make wheels`)."""
    lock = ROOT / "requirements" / "runtime.txt"
    kept = programs.cache_dir() / "wheels" / _hash_of([lock], PYTHON)
    if not kept.exists():
        programs.say("downloading the pinned wheels")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=kept.parent))
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--require-hashes",
                "--only-binary=:all:",
                f"--python-version={PYTHON}",
                *(f"--platform={p}" for p in PLATFORMS),
                "-r",
                str(lock),
                "-d",
                str(partial),
            ]
        )
        partial.chmod(0o755)
        partial.rename(kept)
    shutil.copytree(kept, target / "dependencies")
    shutil.copy(lock, target / "dependencies" / "runtime.txt")
    own = target / "own"
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(own)], cwd=ROOT)


def _busybox() -> str:
    return shutil.which("busybox") or "busybox"


def _from_files(reference: str, parent: str, files: dict[Path, str], *, entrypoint: str) -> None:
    container = _buildah("from", parent).strip()
    for source, target in files.items():
        _buildah("copy", "-q", "--chmod=755", container, str(source), target)
    if parent == "scratch":
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        if certificates.exists():
            _buildah("copy", "-q", container, str(certificates.resolve()), str(certificates))
    _buildah("config", f'--entrypoint=["{entrypoint}"]', "--cmd=", container)
    _buildah("commit", "-q", "--rm", container, reference)


def _image(name: str, tag: str, build: Callable[[str], None]) -> Image:
    reference = f"{name}:{tag}"
    short = name.rpartition("/")[2]
    archive = programs.cache_dir() / "images" / f"{short}-{tag}.tar"
    if not archive.exists():
        debian.ensure_packages(["buildah"])
        with programs.locked(f"image-{short}"):
            if not archive.exists():
                programs.say(f"building image {reference}")
                archive.parent.mkdir(parents=True, exist_ok=True)
                build(reference)
                partial = archive.with_suffix(".partial")
                _buildah("push", "-q", reference, f"docker-archive:{partial}:{reference}")
                partial.rename(archive)
                _forget_old(name, archive)
    return Image(reference=reference, archive=archive)


def _forget_old(name: str, newest: Path) -> None:
    """Keep the last few archives of an image; each change of the operator makes one."""
    prefix = name.rpartition("/")[2]
    archives = sorted(newest.parent.glob(f"{prefix}-*.tar"), key=lambda a: a.stat().st_mtime)
    for archive in archives[:-KEPT_ARCHIVES]:
        tag = archive.name.removeprefix(f"{prefix}-").removesuffix(".tar")
        archive.unlink()
        _buildah("rmi", f"{name}:{tag}", check=False)


def _base_tag() -> str:
    return hashlib.sha256(f"{SUITE} {BASE_PACKAGES} {BASE_VERSION}".encode()).hexdigest()[:12]


def _hash_of(files: Sequence[Path], salt: str) -> str:
    digest = hashlib.sha256(salt.encode())
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _buildah(*arguments: str, check: bool = True) -> str:
    # chroot works where user namespaces do not. The store is our own: what others keep on this machine is
    # neither used nor cleaned up.
    store = programs.cache_dir() / "buildah"
    store.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    places = [f"--root={store / 'root'}", f"--runroot={store / 'run'}"]
    driver = f"--storage-driver={'overlay' if can_overlay(store) else 'vfs'}"
    command = ["buildah", *places, driver, *arguments]
    return _run(command, environment=environment, check=check)


def _run(
    argv: Sequence[str],
    *,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> str:
    done = subprocess.run(
        argv, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=900
    )
    if check and done.returncode != 0:
        msg = f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-2000:]}"
        raise ClusterError(msg)
    return done.stdout
