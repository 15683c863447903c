"""What counts as one client's address."""

import ipaddress
from functools import lru_cache
from typing import Final

IPV6_PREFIX: Final = 64  # one client has all addresses below it
LONGEST: Final = 100  # characters of an address, which a proxy may have from the client itself


def address_of(client: tuple[str, int] | None) -> str:
    """Return the address of a peer, or the network that its client has; "" for a socket without addresses."""
    return "" if client is None else _network_of(client[0][:LONGEST])


@lru_cache(maxsize=4096)
def _network_of(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a proxy may name its client in any way
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
