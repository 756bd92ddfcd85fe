"""A real API server without a node: etcd and kube-apiserver on loopback, in a few seconds.

For tests of everything that only needs the API: schemas, defaulting, server-side apply, watches, RBAC,
conflicts, owner references as data. Nothing runs pods or garbage-collects: there are no controllers.

    with apiserver.running() as server:
        subprocess.run(["kubectl", f"--kubeconfig={server.kubeconfig}", "get", "namespaces"])
"""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from e2e.cluster import pki, programs
from e2e.cluster.errors import ClusterError, Unavailable
from e2e.cluster.processes import Child
from e2e.cluster.rest import Api
from e2e.cluster.waiting import until

_ATTEMPTS = 4
"""A free port may be taken by somebody else before we listen on it; then everything starts once more."""

_PORT_TAKEN = "address already in use"

_READY = "/readyz"
_DEADLINE = 60.0
"""Seconds; about 4 on a quiet machine with two cores."""


class ApiServer:
    """A running pair; `running` starts one and stops it."""

    def __init__(self, folder: Path, extra: Sequence[str]) -> None:
        """Choose ports, write what both need; `start` starts them."""
        self._programs = programs.ensure("etcd", "kube-apiserver")
        self._folder = folder
        self._extra = extra
        self._children: list[Child] = []
        etcd_port, peer_port, port = _free_ports(3)
        self._port = port
        self._etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._peer_url = f"http://127.0.0.1:{peer_port}"
        self._admin = pki.Identity(user="admin", groups=("system:masters",))
        self._pki = pki.create(folder / "pki", ["127.0.0.1", "localhost"], [self._admin])
        self.url = f"https://127.0.0.1:{port}"
        self.token = self._admin.token
        self.ca_file = self._pki.ca
        self.kubeconfig = pki.write_kubeconfig(
            folder / "kubeconfig", server=self.url, ca=self.ca_file, identity=self._admin
        )
        self._api = Api(url=self.url, token=self.token, ca=self.ca_file)

    def start(self) -> None:
        """Start both and wait until the API server serves its own objects."""
        self._start_etcd()
        self._start_apiserver()

    def add_identity(self, user: str, *groups: str) -> Path:
        """Return a kubeconfig of one more user, known from the next `restart` on; RBAC says what it may."""
        identity = pki.Identity(user=user, groups=groups)
        with self._pki.tokens.open("a") as tokens:
            tokens.write(f'{identity.token},{user},{user},"{",".join(groups)}"\n')
        path = self._folder / f"kubeconfig-{user.replace(':', '-')}"
        return pki.write_kubeconfig(path, server=self.url, ca=self.ca_file, identity=identity)

    def stop_serving(self) -> None:
        """End the API server alone, as an outage; `restart` brings it back at the same address."""
        self._children.pop().stop()

    def restart(self) -> None:
        """End the API server if it runs and start it on the same data; returns when it is ready."""
        if len(self._children) > 1:
            self.stop_serving()
        self._start_apiserver()

    def stop(self) -> None:
        """End everything, at once: nothing of it is needed again."""
        while self._children:
            self._children.pop().stop()

    def _start_etcd(self) -> None:
        command: list[str | Path] = [
            self._programs["etcd"],
            f"--data-dir={self._folder / 'etcd'}",
            "--unsafe-no-fsync",  # nobody needs this data after a power cut, and disks may be slow
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={self._peer_url}",
            f"--initial-advertise-peer-urls={self._peer_url}",
            f"--initial-cluster=default={self._peer_url}",
        ]
        self._children.append(Child("etcd", command, self._folder / "etcd.log"))

    def _start_apiserver(self) -> None:
        command: list[str | Path] = [
            self._programs["kube-apiserver"],
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            # Endpoints of the "kubernetes" service may not be loopback; nobody here follows them.
            "--endpoint-reconciler-type=none",
            f"--secure-port={self._port}",
            "--service-cluster-ip-range=198.19.255.0/24",
            "--authorization-mode=RBAC",
            # Pods would wait for a default service account, which a controller makes in a real cluster.
            "--disable-admission-plugins=ServiceAccount",
            *self._pki.apiserver_flags(),
            *self._extra,
        ]
        child = Child("kube-apiserver", command, self._folder / "kube-apiserver.log")
        self._children.append(child)
        # "default" appears a moment after readiness, and tests use it.
        for path in (_READY, "/api/v1/namespaces/default"):
            until(f"kube-apiserver's {path}", self._asker(path), within=_DEADLINE, why=child.tail)

    def _asker(self, path: str) -> Callable[[], bool]:
        def ask() -> bool:
            for child in self._children:
                if child.has_ended():
                    raise ClusterError(child.tail())
            return self._api.answers(path)

        return ask


@contextlib.contextmanager
def running(*extra: str, keep_logs: Path | None = None) -> Iterator[ApiServer]:
    """Run a pair in a folder of its own, as many beside each other as wanted.

    `extra` are more flags for kube-apiserver; into `keep_logs` the logs are copied at the end.
    """
    if shutil.which("openssl") is None:
        msg = "openssl is needed for the API server's certificates"
        raise Unavailable(msg)
    with tempfile.TemporaryDirectory(prefix="pullthrough-api-") as folder:
        server = _started(Path(folder), extra)
        try:
            yield server
        finally:
            server.stop()
            if keep_logs is not None:
                for log in Path(folder).glob("**/*.log"):
                    shutil.copy(log, keep_logs)


def _started(folder: Path, extra: Sequence[str]) -> ApiServer:
    attempt = 0
    while True:
        attempt += 1
        own = folder / str(attempt)
        own.mkdir()
        server = ApiServer(own, extra)
        try:
            server.start()
        except BaseException as error:
            server.stop()
            port_was_taken = isinstance(error, ClusterError) and _PORT_TAKEN in str(error)
            if attempt == _ATTEMPTS or not port_was_taken:
                raise
        else:
            return server


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


if __name__ == "__main__":
    with running(*sys.argv[1:]) as shown:
        print(f"export KUBECONFIG={shown.kubeconfig}", flush=True)
        with contextlib.suppress(KeyboardInterrupt, EOFError):
            input("Enter ends it " if os.isatty(0) else "")
