"""From `--web.listen-address` to listening sockets.

127.0.0.1:19400   one address
[::1]:19400       an IPv6 address
:19400            every address, IPv4 and IPv6
localhost:0       a name; port 0 takes a free port
"""

from __future__ import annotations

import re
import socket

from gpuhost_exporter.errors import ConfigError

BACKLOG = 1024  # past it a client waits a second for its next attempt

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:\[\]]*)):(?P<port>\d{1,5})\Z")


def parse_address(address: str) -> tuple[str, int]:
    """Host ("" for all) and port; ConfigError where it is neither."""
    match = _ADDRESS.match(address)
    if not match or int(match["port"]) > 65535:
        raise ConfigError(f"listen address {address!r}: expected HOST:PORT, [IPV6]:PORT or :PORT")
    return match["six"] or match["host"] or "", int(match["port"])


def listen(address: str) -> socket.socket:
    """A listening socket that does not block; ConfigError where the address cannot be taken."""
    host, port = parse_address(address)
    try:
        if not host:
            return _listen_everywhere(port)
        found = socket.getaddrinfo(_name(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, name = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return _listening(family, name)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(f"cannot listen on {address}: {reason}") from error


def _name(host: str) -> str | bytes:
    """As bytes where that will do: text goes through tables of Unicode that take 1 MiB."""
    return host.encode() if host.isascii() else host


def bound_address(listener: socket.socket) -> str:
    """HOST:PORT as really bound."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return _listening(socket.AF_INET6, ("::", port))
    return _listening(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104 -- ":PORT" asks for it


def _listening(family: int, name: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, name[0] != "::")
        listener.bind(name)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
