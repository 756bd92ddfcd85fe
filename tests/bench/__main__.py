"""`make bench`: figures as ratios within one run. Each figure's module in this folder has a `main(argv)`."""

import sys

from e2e.cluster import programs
from tests.bench import online, reseed, storm, switch, switch_on_cluster


def main() -> int:
    """Run every benchmark with the programs it needs."""
    registry = programs.ensure("registry-3.1.2")["registry-3.1.2"]
    given = ["--registry", str(registry)]
    # Each is run, whatever the others say.
    return max(
        reseed.main(given),
        storm.main(given),
        switch.main(given),
        switch_on_cluster.main([]),
        online.main([]),
    )


if __name__ == "__main__":
    sys.exit(main())
