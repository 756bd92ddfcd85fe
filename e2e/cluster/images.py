"""Images for the test cluster, built without pulling from anywhere.

The operator's comes from the repository's Dockerfile, the one that would be published; its base here is a Debian made
by mmdebstrap. The registries are the programs under test in an image without a shell (3.1.2) and in Debian (2.8.2).
Everything is kept in the cache folder by content: a call that finds nothing changed takes well under a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import debian, machine, programs
from e2e.cluster.commands import run
from e2e.cluster.mounts import can_overlay

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of that suite: wheels are chosen for it, whatever runs the build."""
BASE_PACKAGES = "python3,python3-venv,ca-certificates,usr-is-merged"
"""usr-is-merged instead of usrmerge, which brings all of Perl, a third of the base."""
KEPT_ARCHIVES = 4
_LONGEST_STEP = 1800.0
"""Seconds for one step of a build; making the base and downloading wheels depend on somebody's network."""


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
    named = {str(source.relative_to(ROOT)): source for source in sources}
    key = _key(named, [_base_key(), *machine.this().wheel_platforms])

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

    return _image("localhost/pullthrough", "", key, build)


def registry_image(version: str) -> Image:
    """`localhost/registry:3.1.2-<key>` or `:2.8.2-<key>`; takes `serve <file>` as arguments, as the published ones do."""
    binary = programs.ensure(f"registry-{version}")[f"registry-{version}"]
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    is_static = version.startswith("3")
    files = {"/bin/registry": binary}
    if is_static and certificates.exists():
        files[str(certificates)] = certificates.resolve()
    recipe = Recipe(
        files=files,
        on_debian=not is_static,
        config=('--entrypoint=["/bin/registry"]', "--cmd="),
    )
    return _from_recipe("localhost/registry", version, recipe)


def pause_image() -> Image:
    """`localhost/pause:<key>`, what holds a pod's namespaces: anything that waits and needs no library."""
    wait = '["/busybox","tail","-f","/dev/null"]'
    recipe = Recipe(files={"/busybox": _busybox()}, config=(f"--entrypoint={wait}", "--cmd="))
    return _from_recipe("localhost/pause", "", recipe)


def busybox_image() -> Image:
    """`localhost/busybox:<key>`, a shell and small tools for tests that need a pod of no importance."""
    recipe = Recipe(
        files={"/bin/busybox": _busybox()},
        commands=(("/bin/busybox", "--install", "-s", "/bin"),),
        config=('--cmd=["/bin/sh"]', "--env=PATH=/bin"),
    )
    return _from_recipe("localhost/busybox", "", recipe)


def base() -> str:
    """The Debian that images here stand on, in buildah's store; made once (about half a minute)."""
    debian.ensure_packages(["buildah", "mmdebstrap", "debian-archive-keyring"])
    reference = f"localhost/pullthrough-base:{_base_key()}"
    archive = programs.cache_dir() / "images" / f"base-{_base_key()}.tar"
    with programs.locked("base"):
        if not archive.exists():
            programs.say(f"making a Debian {SUITE} base for images (about half a minute)")
            archive.parent.mkdir(parents=True, exist_ok=True)
            partial = archive.with_suffix(".partial.tar")
            make = [*_base_command(), str(partial)]
            run(make, f"making a Debian {SUITE} base", within=_LONGEST_STEP)
            partial.rename(archive)
        if _buildah("images", "-q", reference, check=False).strip() == "":
            container = _buildah("from", "scratch").strip()
            _buildah("add", "-q", container, str(archive), "/")
            _buildah("commit", "-q", "--rm", container, reference)
    return reference


def wheels(target: Path) -> None:
    """Fill a folder with the wheels the Dockerfile needs (`make wheels`)."""
    lock = ROOT / "requirements" / "runtime.txt"
    shutil.copytree(downloaded_wheels(lock), target / "dependencies")
    shutil.copy(lock, target / "dependencies" / "runtime.txt")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target / "own")]
    run(build, "building our own wheel", within=_LONGEST_STEP, cwd=ROOT)


def downloaded_wheels(lock: Path) -> Path:
    """The folder with all wheels that the lock file pins, for the images' Python on this machine's processor."""
    platforms = machine.this().wheel_platforms
    kept = programs.cache_dir() / "wheels" / _key({"lock": lock}, [PYTHON, *platforms])
    with programs.locked("wheels"):
        if kept.exists():
            return kept
        programs.say("downloading the pinned wheels")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=kept.parent) as folder:
            partial = Path(folder, "wheels")
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes"]
            download += ["--only-binary=:all:", f"--python-version={PYTHON}"]
            download += [*(f"--platform={p}" for p in platforms), "-r", str(lock)]
            download += ["-d", str(partial)]
            run(download, "downloading the pinned wheels", within=_LONGEST_STEP)
            partial.rename(kept)
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a small image is made; as a value, so that it can be part of the image's key."""

    files: Mapping[str, Path]
    """What is copied, by its place in the image."""
    on_debian: bool = False
    """Else on nothing."""
    commands: Sequence[Sequence[str]] = ()
    config: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Another one for another recipe or other files."""
        parent = _base_key() if self.on_debian else "scratch"
        commands = [" ".join(command) for command in self.commands]
        return _key(self.files, [parent, *commands, *self.config])


def _from_recipe(name: str, version: str, recipe: Recipe) -> Image:
    def build(reference: str) -> None:
        container = _buildah("from", base() if recipe.on_debian else "scratch").strip()
        for target, source in recipe.files.items():
            _buildah("copy", "-q", "--chmod=755", container, str(source), target)
        for command in recipe.commands:
            _buildah("run", container, *command)
        _buildah("config", *recipe.config, container)
        _buildah("commit", "-q", "--rm", container, reference)

    return _image(name, version, recipe.key, build)


def _busybox() -> Path:
    debian.ensure_packages(["busybox-static"])
    return Path(shutil.which("busybox") or "/bin/busybox")


def _image(name: str, version: str, key: str, build: Callable[[str], None]) -> Image:
    tag = "-".join(filter(None, (version, key)))
    family = "-".join(filter(None, (name.rpartition("/")[2], version)))
    reference = f"{name}:{tag}"
    archive = programs.cache_dir() / "images" / f"{family}-{key}.tar"
    if not archive.exists():
        debian.ensure_packages(["buildah"])
        with programs.locked(f"image-{family}"):
            if not archive.exists():
                programs.say(f"building image {reference}")
                archive.parent.mkdir(parents=True, exist_ok=True)
                build(reference)
                partial = archive.with_suffix(".partial")
                partial.unlink(missing_ok=True)
                _buildah("push", "-q", reference, f"docker-archive:{partial}:{reference}")
                partial.rename(archive)
                _forget_old(name, version, family, archive)
    return Image(reference=reference, archive=archive)


def _forget_old(name: str, version: str, family: str, newest: Path) -> None:
    """Keep the last few archives of an image; each change of the operator makes one."""
    archives = sorted(newest.parent.glob(f"{family}-*.tar"), key=lambda a: a.stat().st_mtime)
    for archive in archives[:-KEPT_ARCHIVES]:
        key = archive.name.removeprefix(f"{family}-").removesuffix(".tar")
        archive.unlink()
        _buildah("rmi", f"{name}:{'-'.join(filter(None, (version, key)))}", check=False)


def _base_command() -> list[str]:
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        f"--architectures={machine.this().debian}",
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        f"--include={BASE_PACKAGES}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/info/*",
        SUITE,
    ]


def _base_key() -> str:
    """The recipe alone: what Debian has in the suite today is not asked each time."""
    return _key({}, _base_command())


def _key(files: Mapping[str, Path], recipe: Sequence[str]) -> str:
    """A hash of what an image is made from."""
    digest = hashlib.sha256("\0".join(recipe).encode())
    for name, file in sorted(files.items()):
        digest.update(b"\0" + name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _buildah(*arguments: str, check: bool = True) -> str:
    # chroot works where user namespaces do not. The store is our own: what others keep on this machine is
    # neither used nor cleaned up.
    store = programs.cache_dir() / "buildah"
    store.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    places = [f"--root={store / 'root'}", f"--runroot={store / 'run'}"]
    driver = f"--storage-driver={'overlay' if can_overlay(store) else 'vfs'}"
    done = run(
        ["buildah", *places, driver, *arguments],
        f"buildah {arguments[0]}",
        within=_LONGEST_STEP,
        check=check,
        environment=environment,
    )
    return done.stdout
