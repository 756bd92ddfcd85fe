"""The repository's layout keeps its promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_the_source_root_holds_the_one_package_and_would_not_shadow_the_standard_library() -> None:
    found = {
        path.relative_to(ROOT).parts[1]
        for path in tracked()
        if path.is_relative_to(ROOT / "operator")
    }
    assert found == {"pullthrough"}


@pytest.mark.parametrize(
    "command", ["audit", "reseed", "sweep", "purge", "migrate", "prepare", "keep"]
)
def test_a_storage_program_starts_without_kopf_kubernetes_pydantic_or_jinja2(command: str) -> None:
    program = (
        "import sys; from pullthrough import cli\n"
        f"try: cli.main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'kopf', 'kubernetes', 'pydantic', 'jinja2', 'yaml', 'aiohttp'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "operator"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_tracked_file_names_a_package_registrys_host_or_a_path_of_one_machine() -> None:
    hosts = "|".join(("pypi", "pythonhosted", "golang", "crates", "npmjs", "maven", "debian"))
    forbidden = re.compile(rf"https?://[\w.-]*\b({hosts})[\w.-]*\.(org|io)\b|(?<![\w.])/root/")
    this = Path(__file__).resolve()
    offenders = []
    for path in tracked():
        if path == this or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        offenders += [f"{path.relative_to(ROOT)}: {m[0]}" for m in forbidden.finditer(text)]
    assert offenders == []


def test_every_pin_has_a_hash_and_no_lock_file_names_an_index() -> None:
    for name in ("runtime", "dev"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        pins = re.findall(r"^[a-zA-Z0-9_.-]+==.*$", text, flags=re.MULTILINE)
        assert pins
        assert all(pin.endswith("\\") for pin in pins), "a pin without a hash"
        assert "://" not in text
