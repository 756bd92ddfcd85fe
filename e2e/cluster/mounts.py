"""What is mounted on this machine, and what can be."""

from pathlib import Path

from e2e.cluster.commands import run


def can_overlay(folder: Path) -> bool:
    """Whether overlay mounts can stand on this folder; they do not stack. Else layers are copied."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(where, kind) for _, where, kind, *_ in mounts if folder.is_relative_to(where)]
    # The last one of the longest: a later mount on the same place hides the earlier one.
    length = max(len(where) for where, _ in above)
    *_, kind = [kind for where, kind in above if len(where) == length]
    return kind not in {"overlay", "fuse.fuse-overlayfs"}


def unmount_below(folder: Path) -> None:
    """Unmount everything below the folder, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # Spaces and the like are octal escapes there; none of our paths has one.
    mounted = [line.split()[4] for line in lines]
    below = [where for where in mounted if where.startswith(f"{folder}/")]
    if below:
        run(["umount", "--lazy", *reversed(below)], f"unmounting below {folder}", within=60)
