"""What a cluster's programs trust and show: a CA, the API server's certificate, tokens, kubeconfigs.

Elliptic keys, as they take milliseconds to make. Tokens rather than client certificates: one line in a
file each, and a kubeconfig that can be read.
"""

import dataclasses
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.commands import run

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS = "30"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who somebody is to the API server, by a line of its token file."""

    user: str
    groups: tuple[str, ...]
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16), repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of one cluster's folder; `create` makes them."""

    folder: Path

    @property
    def ca(self) -> Path:
        """Whom to trust."""
        return self.folder / "ca.crt"

    @property
    def tokens(self) -> Path:
        """kube-apiserver's token file."""
        return self.folder / "tokens.csv"

    def first_token(self) -> str:
        """The first identity's, which is the administrator's."""
        return self.tokens.read_text().partition(",")[0]

    def apiserver_flags(self) -> list[str]:
        """What kube-apiserver is told of these files."""
        return [
            f"--client-ca-file={self.ca}",
            f"--tls-cert-file={self.folder / 'api.crt'}",
            f"--tls-private-key-file={self.folder / 'api.key'}",
            f"--token-auth-file={self.tokens}",
            f"--service-account-key-file={self.folder / 'sa.pub'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
        ]

    def controller_manager_flags(self) -> list[str]:
        """What kube-controller-manager is told: it issues no tokens, but spreads the CA to namespaces."""
        return [
            f"--service-account-private-key-file={self.folder / 'sa.key'}",
            f"--root-ca-file={self.ca}",
        ]


def create(folder: Path, names: Sequence[str], identities: Sequence[Identity]) -> Files:
    """Make a CA, a server certificate for these names and addresses, and the token file."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _openssl(folder, "req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.crt", "-days", _DAYS)
    alternatives = ",".join(f"{_kind(name)}:{name}" for name in names)
    (folder / "names").write_text(f"subjectAltName={alternatives}\n")
    _openssl(folder, "req", *_KEY, "-keyout", "api.key", "-out", "api.csr")
    _openssl(
        folder, "x509", "-req", "-in", "api.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
        "-CAcreateserial", "-days", _DAYS, "-extfile", "names", "-out", "api.crt",
    )  # fmt: skip
    _openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
    _openssl(folder, "ec", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    files = Files(folder=folder)
    lines = [f'{who.token},{who.user},{who.user},"{",".join(who.groups)}"' for who in identities]
    files.tokens.write_text("\n".join(lines) + "\n")
    return files


def write_kubeconfig(path: Path, *, server: str, ca: Path, identity: Identity) -> Path:
    """Write a kubeconfig, in block style: kubelet and kubectl take a leading brace for JSON."""
    path.write_text(
        f"""\
apiVersion: v1
kind: Config
current-context: test
contexts:
- name: test
  context: {{cluster: test, user: {identity.user}}}
clusters:
- name: test
  cluster: {{server: "{server}", certificate-authority: "{ca}"}}
users:
- name: {identity.user}
  user: {{token: "{identity.token}"}}
"""
    )
    path.chmod(0o600)
    return path


def _kind(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "DNS"
    return "IP"


def _openssl(folder: Path, command: str, *arguments: str) -> None:
    subject = {"req": ("-subj", "/CN=pullthrough-test")}.get(command, ())
    run(["openssl", command, *subject, *arguments], f"openssl {command}", within=60, cwd=folder)
