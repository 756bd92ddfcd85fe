"""`python -m e2e.cluster up | down | status`: a cluster to work with, until it is taken down."""

import argparse
import sys

from e2e.cluster import local, programs, slots
from e2e.cluster.errors import ClusterError


def main() -> int:
    """Run one command; 1 with a sentence where it failed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    commands = {"up": up, "down": down, "status": status}
    parser.add_argument("command", choices=commands)
    parser.add_argument("name", nargs="?", help="down: only this one, as status calls it")
    arguments = parser.parse_args()
    try:
        commands[arguments.command](arguments.name)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def up(_: str | None) -> None:
    """Start a cluster that stays; the one that already stays is as good."""
    kept = [cluster for cluster, record in local.living() if record.is_kept]
    cluster = kept[0] if kept else local.start(kept=True)
    kubectl = programs.path_of("kubectl")
    print(f"""\
{cluster.name} is up. Use it:

  export KUBECONFIG={cluster.kubeconfig}
  export PATH={kubectl.parent}:$PATH
  kubectl get nodes

Service and pod addresses are reachable from this machine; pods reach it at {cluster.host_address}.
Tests on it: E2E_CLUSTER=current pytest e2e
Take it down: python -m e2e.cluster down""")


def down(name: str | None) -> None:
    """Stop what `up` started and remove what killed runs left; a running test keeps its own."""
    failed = []
    with slots.locked():
        for slot, record in slots.occupied():
            is_somebodys = record.is_living and not record.is_kept
            if is_somebodys or name not in {None, slot.name}:
                continue
            try:
                local.clean(slot)
            except (ClusterError, OSError) as why:
                failed.append(f"{slot.name} is not down: {why}")
            else:
                print(f"{slot.name} is down")
    if failed:
        raise ClusterError("\n".join(failed))


def status(_: str | None) -> None:
    """Say what is where."""
    for slot, record in slots.occupied():
        if record.is_kept:
            state = "up, until it is taken down"
        elif record.is_living:
            state = f"up, as long as process {record.owner.pid if record.owner else 0} lives"
        else:
            state = "the rest of a killed run; `down`, or the next start, removes it"
        print(f"{slot.name}: {state}")
        for process in record.processes:
            alive = "runs" if process.is_alive() else "ended"
            print(f"  {process.name} ({process.pid}) {alive}")
        print(f"  KUBECONFIG={slot.folder / 'kubeconfig'}")


if __name__ == "__main__":
    sys.exit(main())
