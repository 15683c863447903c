"""The TCP socket that the API answers on."""

import errno
import ipaddress
import socket

from app.serve.errors import CannotStart

BACKLOG = 2048


def listen(host: str, port: int, *, allow_anonymous: bool) -> socket.socket:
    """Return a listening socket, which keeps the port as long as it is open; port 0 picks a free one.

    Raises CannotStart "anonymous_not_allowed", "port_in_use" or "cannot_listen".
    """
    family, address = _resolve(host, port)
    refuse_anonymous(address[0], allow_anonymous=allow_anonymous)
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                "port_in_use",
                f"Port {port} of {host} is in use. Stop what listens there, or choose another with --port "
                "(0 picks a free one).",
            ) from error
        raise CannotStart(
            "cannot_listen",
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose others with --host and --port.",
        ) from error


def inherited(descriptor: int, *, allow_anonymous: bool) -> socket.socket:
    """Take over a listening socket of the parent process, by its descriptor.

    Raises CannotStart "anonymous_not_allowed" or "cannot_listen".
    """
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise CannotStart(
            "cannot_listen", f"--fd {descriptor} is not a socket this process was given. Use --host and --port instead."
        ) from error
    if listener.family in {socket.AF_INET, socket.AF_INET6}:
        refuse_anonymous(listener.getsockname()[0], allow_anonymous=allow_anonymous)
    return listener


def refuse_anonymous(address: str, *, allow_anonymous: bool) -> None:
    """Raise CannotStart "anonymous_not_allowed" if other machines reach the address and nobody has allowed that.

    The service knows no API keys, so whoever reaches it may do everything.
    """
    if allow_anonymous or ipaddress.ip_address(address).is_loopback:
        return
    raise CannotStart(
        "anonymous_not_allowed",
        f"{address} can be reached from other machines, and anyone who reaches this service may do everything with it: "
        "there are no API keys yet. Listen on 127.0.0.1, or accept that with --allow-anonymous "
        "(or ENGINESMITH_ALLOW_ANONYMOUS=1).",
    )


def url_of(listener: socket.socket) -> str:
    """Return the URL by which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError) as error:
        raise CannotStart(
            "cannot_listen", f"{host} port {port} is not an address: {error}. Try --host 127.0.0.1."
        ) from error
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # most clients expect IPv4
    return family, (str(address[0]), int(address[1]))
