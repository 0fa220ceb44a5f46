"""Whether an upstream is this very server, which would ask itself until nothing is left.

In: an upstream's address, and where this server listens. Out: an error at the start. What shows only at run time,
behind a load balancer, is for `softspec.server.ops.loops`.
"""

import ipaddress
import socket
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

import psutil

from softspec.errors import ConfigError
from softspec.server.upstream.settings import UpstreamSettings

EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts by which a server listens on all addresses of its machine."""
PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str], Collection[str]]
"""The addresses of a host; none where it is not known."""


def require_elsewhere(upstreams: Mapping[str, UpstreamSettings], host: str | None, port: int) -> None:
    """Raise if an upstream is the server that listens on this host (None: on all addresses) and port.

    Raises:
        ConfigError: requests that are routed there would come back.
    """
    own = own_addresses()
    for name, settings in upstreams.items():
        if points_at(settings.url, host, port, addresses_of, own):
            raise ConfigError(
                f"upstream '{name}' points back at this server, which listens on port {port}: give the url of another "
                "server, or another --port"
            )


def points_at(url: str, host: str | None, port: int, resolve: Resolve, own: Collection[str]) -> bool:
    """Whether a request to `url` reaches who listens on `host` and `port` of a machine with these addresses."""
    parts = urlsplit(url)
    if (parts.port or PORTS[parts.scheme]) != port:
        return False
    reached = {_plain(address) for address in resolve(parts.hostname or "")}
    is_unspecified = {address for address in reached if ipaddress.ip_address(address).is_unspecified}
    if host is None or host in EVERYWHERE:
        local = {_plain(address) for address in own}
        return any(
            ipaddress.ip_address(address).is_loopback or address in local for address in reached
        ) or bool(is_unspecified)
    listening = {_plain(address) for address in resolve(host)}
    if is_unspecified:  # connecting to it is connecting to the machine's own loopback
        reached |= {"127.0.0.1", "::1"}
    return bool(reached & listening)


def addresses_of(host: str) -> list[str]:
    """What the system knows of a host."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]


def own_addresses() -> list[str]:
    """The addresses of this machine's network interfaces."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in families
    ]


def _plain(address: str) -> str:
    """An address without its zone, IPv4 where it only wears the form of IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
