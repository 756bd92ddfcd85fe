"""The one command. It finds the module that a word stands for and imports only that.

`audit` must start in 0.15 s and must run where neither kopf nor pydantic is installed, so nothing
is imported here but what dispatching needs.

Exit codes: 0 fine, 1 a finding or a failure whose message says the remedy, 2 wrong usage,
3 the storage belongs to another upstream.
"""

from __future__ import annotations

import sys

COMMANDS: dict[str, str] = {
    "run": "pullthrough.handlers.run:main",
    "audit": "pullthrough.storage.audit:main",
    "reseed": "pullthrough.storage.reseed:main",
    "sweep": "pullthrough.storage.sweep:main",
    "purge": "pullthrough.storage.purge:main",
    "migrate": "pullthrough.storage.migrate:main",
    "prepare": "pullthrough.storage.prepare:main",
    "keep": "pullthrough.storage.keeper.program:main",
    "crd": "pullthrough.models.crd:main",
}
"""Command -> "module:function"; the function takes the arguments and returns the exit code."""

SUMMARIES: dict[str, str] = {
    "run": "the operator",
    "audit": "say what on a registry's storage no entry covers and what nothing can reach",
    "reseed": "rebuild the TTL state of a stopped registry from what lies on its storage",
    "sweep": "remove what nothing on a registry's storage can reach, offline or online",
    "purge": "remove one repository, one image, so and so many bytes, or all",
    "migrate": "write the finished TTL state beside a serving registry (the migration Job)",
    "prepare": "make the storage right before a registry starts (init container)",
    "keep": "sweep online, watch the state file, report (sidecar)",
    "crd": "print the custom resource definition",
}


def usage() -> str:
    """What `pullthrough --help` prints."""
    lines = [f"  {name:9}{SUMMARIES[name]}" for name in COMMANDS]
    return "\n".join(["usage: pullthrough COMMAND [OPTIONS]", "", *lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code of the table in the module's docstring."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(usage())
        return 0
    if arguments and arguments[0] == "--version":
        from pullthrough.__about__ import __version__

        sys.stdout.write(f"pullthrough {__version__}\n")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        if arguments:
            sys.stderr.write(f"pullthrough: there is no command {arguments[0]!r}\n\n")
        sys.stderr.write(usage())
        return 2
    module_name, _, function_name = COMMANDS[arguments[0]].partition(":")
    import importlib

    function = getattr(importlib.import_module(module_name), function_name)
    return int(function(arguments[1:]) or 0)
