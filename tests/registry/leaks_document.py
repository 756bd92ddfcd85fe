"""docs/leaks.md from the table and from what was seen: `python -m tests.registry.leaks_document` prints it.

A run of test_leaks.py fails where it sees anything else than `leaks.json` says, and where the page differs from this.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pullthrough.storage.survey import EXPLANATIONS, Leak
from tests.registry import leaks
from tests.registry.leaks import Row

SEEN = Path(__file__).with_name("leaks.json")
DOCUMENT = Path(__file__).parents[2] / "docs/leaks.md"

INTRODUCTION = """# Every way to leak, and what ends it

Generated from `tests/registry/leaks.py` and `tests/registry/leaks.json` by `make generate`. The second is what a run of
`tests/registry/test_leaks.py` saw; a later run fails where it sees anything else.

For each row and version: the leak was brought about; a registry of that version with collection on then did all that its
scheduler had to do, and what had leaked was still there; `audit` named it, as many as there were and no others among its
examples; the programs ended it on the stopped registry's storage; `audit` found nothing more; every image could be pulled
through the cache, each byte checked. A sweep left every link and blob that a pull could get, and a second one changed
nothing. Reseed ends a leak by letting the registry collect it: that was waited for, with a ttl of a second. Where `keep` is
named, the keeper's passes also removed it beside the serving registry, with its clock set two days ahead. Instead of waiting
for a week, entries that were to expire were set to the past in the state file of the stopped registry.

3.0.0 has the scheduler and the deletion of 3.1.2, and is run where it writes differently: in place. After the same pulls
the entries that reseed writes for each of the three versions are the registry's own, by key and type, and the file is what
that registry would write, byte for byte but for the times.

"""


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """What was seen: row number -> version -> classes that audit named, what ended it."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(SEEN.read_bytes())
    return found


def add(seen: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Commit what a recording run saw, which may be a part only, in the table's order."""
    known: dict[str, dict[str, Any]] = {str(row.number): {} for row in leaks.ROWS}
    for number, found in (*recorded().items(), *seen.items()):
        known[number].update(found)
    for row in leaks.ROWS:
        ordered = sorted(
            known[str(row.number)].items(), key=lambda item: row.versions.index(item[0])
        )
        known[str(row.number)] = dict(ordered)
    SEEN.write_text(json.dumps(known, indent=1) + "\n")


def page() -> str:
    """The whole document."""
    seen = recorded()
    lines = [
        INTRODUCTION,
        "| # | what happens | versions | audit names it | ended by |",
        "|---|---|---|---|---|",
    ]
    lines += [_line(row, seen.get(str(row.number), {})) for row in leaks.ROWS]
    lines += ["", "## How each was brought about", "", "| # | |", "|---|---|"]
    for row in leaks.ROWS:
        made = f"**By hand**, because {row.constructed}: {row.how}" if row.constructed else row.how
        lines.append(f"| {row.number} | {made}{f'. {row.elsewhere}' if row.elsewhere else ''} |")
    lines += ["", "## The classes", "", "| class | is | ended by |", "|---|---|---|"]
    lines += [
        f"| `{leak.value}` | {EXPLANATIONS[leak].what} | {EXPLANATIONS[leak].remedy} |"
        for leak in Leak
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row, seen: Mapping[str, Mapping[str, Any]]) -> str:
    """A row whose versions agree is told once; the rest version by version."""
    versions = ", ".join(row.versions)
    named = _agreed({version: _classes(found["named"]) for version, found in seen.items()})
    ended = _agreed({version: ", ".join(found["endedBy"]) for version, found in seen.items()})
    mark = " (by hand)" if row.constructed else ""
    return f"| {row.number} | {row.happens} | {versions}{mark} | {named} | {ended} |"


def _classes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _agreed(by_version: Mapping[str, str]) -> str:
    if len(set(by_version.values())) == 1:
        return next(iter(by_version.values()))
    return "; ".join(f"{version}: {told}" for version, told in by_version.items()) or "not seen"


if __name__ == "__main__":
    sys.stdout.write(page())
