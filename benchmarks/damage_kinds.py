"""What happens to stored bytes. Each function takes the right bytes and those of others of their kind."""

from collections.abc import Callable, Mapping

import numpy as np

PAGE = 4096
Random = np.random.Generator


def flip(content: bytes, _others: list[bytes], random: Random) -> bytes:
    """Flip one bit."""
    at = int(random.integers(len(content)))
    return content[:at] + bytes([content[at] ^ (1 << int(random.integers(8)))]) + content[at + 1 :]


def cut(content: bytes, _others: list[bytes], random: Random) -> bytes:
    """Leave out the end."""
    return content[: int(random.integers(len(content)))]


def blank(content: bytes, _others: list[bytes], random: Random) -> bytes:
    """Zero a page."""
    at = int(random.integers(-(-len(content) // PAGE))) * PAGE
    page = content[at : at + PAGE]
    return content[:at] + bytes(len(page)) + content[at + PAGE :]


def stale(content: bytes, others: list[bytes], random: Random) -> bytes:
    """Take the bytes of another artifact of the same kind, as an old copy would have."""
    return others[int(random.integers(len(others)))] if others else cut(content, others, random)


KINDS: Mapping[str, Callable[[bytes, list[bytes], Random], bytes]] = {
    "bit": flip,
    "truncation": cut,
    "zeroed page": blank,
    "stale copy": stale,
    "swap": stale,  # the other one gets these bytes as well
}
