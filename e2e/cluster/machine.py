"""What this machine's processor is called by those who must be told."""

import dataclasses
import platform

from e2e.cluster.errors import Unavailable

_GLIBC_MINOR = 36
"""glibc 2.36 is Debian 12's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One processor by its names."""

    go: str
    debian: str
    wheels: str
    """In the platform tags of Python wheels."""

    @property
    def wheel_platforms(self) -> tuple[str, ...]:
        """Tags of wheels that run on the Debian of the images; pip takes what is listed and knows of no order in it."""
        tags = [f"manylinux_2_{minor}" for minor in range(_GLIBC_MINOR, 16, -1)]
        return tuple(f"{tag}_{self.wheels}" for tag in (*tags, "manylinux2014", "linux"))


_X86 = Machine(go="amd64", debian="amd64", wheels="x86_64")
_ARM = Machine(go="arm64", debian="arm64", wheels="aarch64")
_MACHINES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
"""By what the kernel says."""


def this(kernel_says: str | None = None) -> Machine:
    """This machine; `Unavailable` where nothing here has a name for it."""
    name = kernel_says or platform.machine()
    if name not in _MACHINES:
        msg = f"images and programs are built for x86_64 and aarch64, and this machine is {name}"
        raise Unavailable(msg)
    return _MACHINES[name]
