"""What the cluster's parts do when something is in the way: deadlines that say what for, nothing left behind.

No cluster is started here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import debian, images, local, locks, machine, programs, slots
from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError, TimedOut, Unavailable
from e2e.cluster.processes import describe
from e2e.cluster.slots import Record, Slot

# -- programs that hang, fail or are missing --------------------------------------------------------------------------


def test_a_program_that_hangs_is_ended_with_all_it_started_and_named(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! >{note}; wait"
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"waited 1 s for the tide: sh -c "):
        run(["sh", "-c", script], "the tide", within=1)
    assert time.monotonic() - began < 10
    child = Path("/proc", note.read_text().strip(), "stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_that_fails_says_what_it_was_for_and_what_it_said() -> None:
    with pytest.raises(Unavailable, match=r"the tide failed: .*exit 3: no moon"):
        run(["sh", "-c", "echo no moon >&2; exit 3"], "the tide", within=5, error=Unavailable)


def test_a_program_that_is_not_there_is_something_the_machine_lacks() -> None:
    with pytest.raises(Unavailable, match="the tide needs no-such-program"):
        run(["no-such-program"], "the tide", within=5)


def test_a_lock_that_is_never_let_go_of_is_named_and_not_waited_for_for_ever(
    tmp_path: Path,
) -> None:
    lock, told = tmp_path / "lock", []
    hold = f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(TimedOut, match=r"waited 1 s for another run that is making tea; it .*"):
            with locks.held(lock, "making tea", within=1, waiting=lambda: told.append("waits")):
                pass
        other.kill()
    assert told == ["waits"]
    with locks.held(lock, "making tea", within=1):
        pass


# -- places of killed runs --------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_cleaned_is_left_alone_and_another_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("E2E_CLUSTER_DIR", str(tmp_path))
    for number in (0, 1):
        Slot(number).folder.mkdir()
        slots.write(Slot(number), Record(owner=None))
    cleaned = []

    def cleaner(slot: Slot) -> None:
        if slot.number == 0:
            msg = "unmounting failed: target is busy"
            raise ClusterError(msg)
        cleaned.append(slot.number)
        (slot.folder / "record.json").unlink()
        slot.folder.rmdir()

    with slots.locked():
        local.remove_leftovers(cleaner)
        assert slots.take() == Slot(1)
    assert cleaned == [1]
    assert "ptc-0 cannot be cleaned and stays unused: unmounting failed" in capfd.readouterr().err


# -- packages ---------------------------------------------------------------------------------------------------------


def test_the_script_that_keeps_daemons_down_goes_with_the_run(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with debian.no_daemons(policy):
        done = subprocess.run([policy], check=False)
        assert done.returncode == 101
        debian.remove_leftover(policy)
        assert policy.exists(), "its owner lives"
    assert list(tmp_path.iterdir()) == []


def test_the_script_of_a_killed_run_is_recognised_and_removed(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    script = (
        "import os, signal, sys, pathlib; from e2e.cluster import debian\n"
        "with debian.no_daemons(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, policy], cwd=images.ROOT, check=False)
    assert subprocess.run([policy], check=False).returncode == 101, "it was left"
    debian.remove_leftover(policy)
    assert not policy.exists()


def test_somebody_elses_script_is_neither_used_nor_removed(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    with debian.no_daemons(policy):
        pass
    debian.remove_leftover(policy)
    assert policy.read_text() == "#!/bin/sh\nexit 101\n"


def test_a_script_with_our_mark_whose_owners_process_id_is_somebody_elses_now_is_removed(
    tmp_path: Path,
) -> None:
    policy = tmp_path / "policy-rc.d"
    ours = describe(os.getpid(), "owner")
    with debian.no_daemons(policy):
        text = policy.read_text()
    assert ours.since in text
    policy.write_text(text.replace(ours.since, "1"))
    debian.remove_leftover(policy)
    assert not policy.exists()


# -- machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel_says", "go", "debian_says", "wheel"),
    [
        ("x86_64", "amd64", "amd64", "manylinux_2_28_x86_64"),
        ("aarch64", "arm64", "arm64", "manylinux_2_24_aarch64"),
    ],
)
def test_a_processor_has_another_name_for_each_who_asks(
    kernel_says: str, go: str, debian_says: str, wheel: str
) -> None:
    found = machine.this(kernel_says)
    assert (found.go, found.debian) == (go, debian_says)
    assert wheel in found.wheel_platforms


def test_a_processor_that_nothing_is_built_for_is_named() -> None:
    with pytest.raises(Unavailable, match="this machine is riscv64"):
        machine.this("riscv64")


def test_another_version_of_the_distributions_registry_is_refused_with_both_versions() -> None:
    program = programs.PROGRAMS["registry-2.8.2"]
    assert isinstance(program, programs.DebianProgram)
    for fits in ("docker-registry_2.8.2+ds1-1+b8_amd64.deb", "docker-registry_2.8.2-1_arm64.deb"):
        programs.check_version("registry-2.8.2", program, fits)
    for other in (
        "docker-registry_2.8.20+ds1-1_amd64.deb",
        "docker-registry_2.8.3+ds1-2_arm64.deb",
    ):
        with pytest.raises(Unavailable, match=r"has 2\.8\.2?[03]\+ds1.* here; 2\.8\.2 is in"):
            programs.check_version("registry-2.8.2", program, other)


# -- images -----------------------------------------------------------------------------------------------------------


def test_a_key_is_of_recipe_and_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    recipe = images.Recipe(files={"/a": one}, config=("--cmd=",))
    keys = [
        recipe.key,
        replace(recipe, files={"/a": other}).key,
        replace(recipe, files={"/b": one}).key,
        replace(recipe, config=("--cmd=[]",)).key,
        replace(recipe, commands=(("true",),)).key,
        replace(recipe, on_debian=True).key,
    ]
    assert len(set(keys)) == len(keys)
    again = tmp_path / "again"
    again.write_text("1")
    assert replace(recipe, files={"/a": again}).key == recipe.key


def test_wheels_that_cannot_be_downloaded_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLTHROUGH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    lock = tmp_path / "runtime.txt"
    lock.write_text(f"no-such-package==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ClusterError, match="downloading the pinned wheels failed"):
        images.downloaded_wheels(lock)
    assert list((tmp_path / "wheels").iterdir()) == []
