"""Listening on both address families, on real sockets."""

import socket

import pytest

from pullthrough import listening

HAS_IPV6 = socket.has_ipv6 and socket.has_dualstack_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("host", ["::", ""])
@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_everywhere_means_both_families(host: str, address: str) -> None:
    with listening.listen(host, 0) as listener:
        assert answers(address, listener.getsockname()[1])


def test_one_address_means_that_one() -> None:
    with listening.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert answers("127.0.0.1", port)
        assert not answers("::1", port)


def test_a_port_that_is_taken_is_an_error_and_no_reason_to_listen_elsewhere() -> None:
    with listening.listen("::", 0) as listener, pytest.raises(OSError, match="in use"):
        listening.listen("::", listener.getsockname()[1])


def test_without_ipv6_it_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def create_server(
        address: tuple[str, int], *, family: int = socket.AF_INET, dualstack_ipv6: bool = False
    ) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return create(address, family=family, dualstack_ipv6=dualstack_ipv6)

    monkeypatch.setattr(socket, "create_server", create_server)
    with listening.listen("::", 0) as listener:
        assert answers("127.0.0.1", listener.getsockname()[1])
