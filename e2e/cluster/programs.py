"""The programs that a test cluster is made of, built once and kept outside the repository.

Nothing here is downloaded ready-made: Go programs are built from their modules, pinned by version and by
hash in `e2e/cluster/go/<recipe>/` (go.mod and go.sum), and the older registry comes out of Debian's
package. A build lands under `<cache>/programs/<name>-<version>/<name>` by renaming a finished folder, so
a folder that exists is complete, however a run before ended; a lock keeps two runs from building at once.

    python -m e2e.cluster.programs            all of them
    python -m e2e.cluster.programs etcd helm  these; prints name and path
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.cluster import locks, machine
from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError, Unavailable

_RECIPES = pathlib.Path(__file__).parent / "go"
_LONGEST_BUILD = 3600.0
"""Seconds for one recipe. All of Kubernetes took 500 on two cores; a slow machine shall not be given up early."""
_LONGEST_OF_ANOTHER_RUN = 2 * 3600.0
_LONGEST_DOWNLOAD = 900.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _GoProgram:
    """One command of a Go module; `recipe` is the folder with the go.mod that pins it."""

    recipe: str
    package: str
    version: str
    cold: str
    flags: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DebianProgram:
    """One file out of a Debian package, which is unpacked and not installed: its daemon must not start."""

    package: str
    file: str
    version: str


_KUBERNETES = "1.34.4"
# Without the version stamped in, kube-apiserver calls itself v0.0.0-master and clients refuse it.
_KUBERNETES_FLAGS = " ".join(
    f"-X {package}.{name}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name in (f"gitVersion=v{_KUBERNETES}", "gitMajor=1", "gitMinor=34", "gitTreeState=clean")
)


def _kubernetes(name: str) -> _GoProgram:
    return _GoProgram(
        recipe="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        version=_KUBERNETES,
        cold="about 5 min for all of Kubernetes",
        flags=_KUBERNETES_FLAGS,
    )


_REGISTRY_MODULE = "github.com/distribution/distribution/v3"

PROGRAMS: dict[str, _GoProgram | DebianProgram] = {
    "etcd": _GoProgram(
        recipe="etcd", package="go.etcd.io/etcd/server/v3", version="3.6.16", cold="about 1 min"
    ),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "kubelet": _kubernetes("kubelet"),
    "kube-proxy": _kubernetes("kube-proxy"),
    "kubectl": _kubernetes("kubectl"),
    "coredns": _GoProgram(
        recipe="coredns",
        package="github.com/coredns/coredns",
        version="1.12.1",
        cold="about 2 min",
    ),
    "helm": _GoProgram(
        recipe="helm",
        package="helm.sh/helm/v3/cmd/helm",
        version="3.22.0",
        cold="about 1 min",
        flags="-X helm.sh/helm/v3/internal/version.version=v3.22.0",
    ),
    "registry-3.1.2": _GoProgram(
        recipe="registry",
        package=f"{_REGISTRY_MODULE}/cmd/registry",
        version="3.1.2",
        cold="about 2 min",
        flags=f"-X {_REGISTRY_MODULE}/version.version=v3.1.2",
    ),
    "registry-3.0.0": _GoProgram(
        recipe="registry-3.0",
        package=f"{_REGISTRY_MODULE}/cmd/registry",
        version="3.0.0",
        cold="about 2 min",
        flags=f"-X {_REGISTRY_MODULE}/version.version=v3.0.0",
    ),
    "versitygw": _GoProgram(
        recipe="versitygw",
        package="github.com/versity/versitygw/cmd/versitygw",
        version="1.8.0",
        cold="about 2 min",
        flags="-X main.Version=v1.8.0",
    ),
    "registry-2.8.2": DebianProgram(
        package="docker-registry", file="usr/bin/docker-registry", version="2.8.2"
    ),
}
"""By the name that `ensure` takes. A registry's name has its version: both series are under test."""


def cache_dir() -> Path:
    """Where everything that is slow to make is kept between runs; safe to delete."""
    if chosen := os.environ.get("PULLTHROUGH_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(base) / "pullthrough").absolute()


def ensure(*names: str) -> dict[str, Path]:
    """Return the path of each program, building first what is not there yet."""
    if unknown := sorted(set(names) - set(PROGRAMS)):
        msg = f"no such program: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}"
        raise ValueError(msg)
    if any(not path_of(name).exists() for name in names):
        with locked("programs"):
            _build([name for name in names if not path_of(name).exists()])
    return {name: path_of(name) for name in names}


def path_of(name: str) -> Path:
    """Where the program is, or will be once it is built."""
    program = PROGRAMS[name]
    folder = name.removesuffix(f"-{program.version}")
    return cache_dir() / "programs" / f"{folder}-{program.version}" / folder


@contextlib.contextmanager
def locked(what: str) -> Iterator[None]:
    """Hold the cache's lock of this name; the kernel lets go of it when the holder dies."""
    with locks.held(
        cache_dir() / f"{what}.lock",
        f"making {what}",
        within=_LONGEST_OF_ANOTHER_RUN,
        waiting=lambda: say(f"waiting for another run that is making {what}"),
    ):
        yield


def say(text: str) -> None:
    """Tell the person who waits what is going on; standard output is for results."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _build(names: Sequence[str]) -> None:
    """Build what is missing: one `go build` for all commands of a recipe, as they share most of it."""
    recipes: dict[str, list[str]] = {}
    for name in names:
        program = PROGRAMS[name]
        match program:
            case _GoProgram():
                recipes.setdefault(program.recipe, []).append(name)
            case DebianProgram():
                _unpack(name, program)
    for recipe, wanted in recipes.items():
        _go_build(recipe, wanted)


def _go_build(recipe: str, names: Sequence[str]) -> None:
    programs = [program for name in names if isinstance(program := PROGRAMS[name], _GoProgram)]
    first = programs[0]
    say(f"building {' '.join(names)} {first.version} (first time {first.cold})")
    if shutil.which("go") is None:
        msg = f"Go is needed to build {', '.join(names)}, and there is no `go` on the PATH"
        raise Unavailable(msg)
    with _staging() as staging:
        command = ["go", "build", "-C", str(_RECIPES / recipe), "-mod=readonly", "-trimpath"]
        command += ["-ldflags", f"-s -w {first.flags}".strip(), "-o", f"{staging}/"]
        started = time.monotonic()
        # No C compiler needed, and static programs run in images that have no libc. The workspace
        # of somebody who calls this must not take part, nor the machine they usually build for.
        own = {"CGO_ENABLED": "0", "GOWORK": "off", "GOARCH": machine.this().go}
        run(
            [*command, *(program.package for program in programs)],
            f"building {', '.join(names)}",
            within=_LONGEST_BUILD,
            error=Unavailable,
            environment={**os.environ, **own},
        )
        for name, program in zip(names, programs, strict=True):
            _install(staging / _go_output_name(program.package), path_of(name))
        say(f"built {' '.join(names)} in {time.monotonic() - started:.0f} s")


def _go_output_name(package: str) -> str:
    """What `go build` calls the program: the last element of its path that is no major version."""
    *_, parent, last = package.split("/")
    return parent if last[0] == "v" and last[1:].isdigit() else last


def _unpack(name: str, program: DebianProgram) -> None:
    say(f"unpacking {name} from Debian's {program.package}")
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        msg = f"{name} comes from a Debian package, and this machine has no {' and no '.join(missing)}"
        raise Unavailable(msg)
    with _staging() as staging:
        # apt downloads as a user of its own, which cannot write into a private folder.
        staging.chmod(0o755)
        _download(program.package, staging)
        (archive,) = staging.glob("*.deb")
        check_version(name, program, archive.name)
        unpack = ["dpkg", "-x", str(archive), str(staging / "root")]
        run(unpack, f"unpacking {archive.name}", within=60, error=Unavailable)
        _install(staging / "root" / program.file, path_of(name))


def _download(package: str, folder: Path) -> None:
    get = ["apt-get", "download", "-o", "APT::Sandbox::User=root", package]
    doing = f"downloading this distribution's {package}"
    first = run(get, doing, within=_LONGEST_DOWNLOAD, check=False, cwd=folder)
    if first.returncode != 0:
        # A machine that never ran `apt-get update` knows no packages.
        update = ["apt-get", "update"]
        run(update, "updating the list of packages", within=_LONGEST_DOWNLOAD, check=False)
        run(get, doing, within=_LONGEST_DOWNLOAD, error=Unavailable, cwd=folder)


def check_version(name: str, program: DebianProgram, archive: str) -> None:
    """The upstream version must be the very one: what is tested is what that version does."""
    found = archive.split("_")[1]
    if re.split(r"[+~-]", found)[0] != program.version:
        msg = (
            f"{name} comes from the distribution's package {program.package}, which has {found} here; "
            f"{program.version} is in Debian 12 (bookworm). Nothing but the tests of that registry needs it"
        )
        raise Unavailable(msg)


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
    """A folder beside the finished ones, so that what is made in it can be renamed into place."""
    parent = cache_dir() / "programs"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=parent) as folder:
        yield Path(folder)


def _install(built: Path, target: Path) -> None:
    """Move one built program into a folder of its own, which appears whole or not at all."""
    folder = Path(tempfile.mkdtemp(prefix=".finished-", dir=target.parent.parent))
    folder.chmod(0o755)
    built.chmod(0o755)
    shutil.move(built, folder / target.name)
    folder.rename(target.parent)


def main(arguments: Sequence[str]) -> int:
    """Build and print; the exit code is 1 with a sentence on standard error where that is impossible.

    What only some distributions have is left out with its reason where all are asked for, but not in CI: tests that
    need it are skipped there with the same reason.
    """
    is_one_distributions = [
        name for name, program in PROGRAMS.items() if isinstance(program, DebianProgram)
    ]
    may_lack = [] if arguments or os.environ.get("CI") else is_one_distributions
    try:
        found = ensure(*(name for name in arguments or PROGRAMS if name not in may_lack))
    except (ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for name in may_lack:
        try:
            found |= ensure(name)
        except Unavailable as why:
            say(f"left out: {why}")
    for name, path in found.items():
        print(f"{name} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
