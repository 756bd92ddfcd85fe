"""`make bench`: figures as ratios within one run. Each module of this folder has a `main(argv)`."""

import sys

from e2e.cluster import programs
from tests.bench import reseed, switch


def main() -> int:
    """Run every benchmark with the programs it needs."""
    registry = programs.ensure("registry-3.1.2")["registry-3.1.2"]
    given = ["--registry", str(registry)]
    return reseed.main(given) or switch.main(given)


if __name__ == "__main__":
    sys.exit(main())
