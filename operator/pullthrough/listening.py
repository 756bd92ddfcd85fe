"""A listening socket for both address families: clusters have IPv4, IPv6 or both."""

from __future__ import annotations

import errno
import socket

EVERYWHERE = ("", "::")
"""Hosts that mean every address of both families."""
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that accepts connections there. Raises OSError.

    On `::` (or nothing) it takes IPv4 and IPv6, whatever the system's default for that is; where
    there is no IPv6, IPv4 alone.
    """
    if host in EVERYWHERE:
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except ValueError:
            # Python's word for: this platform cannot have both on one socket.
            return socket.create_server(("0.0.0.0", port))
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
            return socket.create_server(("0.0.0.0", port))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
