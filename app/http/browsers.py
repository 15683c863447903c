"""What keeps a web page of somebody else from using this service through its visitor's browser.

A page may have its own name resolve to 127.0.0.1 or to a machine of the intranet (DNS rebinding), and is then of the
same origin for the browser. So the service answers only to names that it knows. An IP address is no name, so it cannot
be rebound.

A page may also send a form or a simple request to any address. Browsers say where such a request comes from, and no
page can change what they say. Programs that are no browsers send none of these headers. No page may show one of ours
in a frame.
"""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Forbidden, Misdirected, ServiceError
from app.http.problems import error_response

LOOPBACK = frozenset({"localhost", "*.localhost"})
ANY = "*"
READING = frozenset({"GET", "HEAD", "OPTIONS"})
FRAMING = (b"x-frame-options", b"DENY")  # or another page could have its visitor click on /docs without seeing it
OURS = frozenset({"same-origin", "none"})  # "none": a person typed the address
SHOWN = 100  # characters of a name in an answer


class BrowserGuard:
    """Refuses requests under a foreign name, and changes that a page of another origin asks for."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.app = app
        self._allowed = frozenset(name.lower() for name in allowed_hosts) | LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 421 "host_not_allowed" or 403 "cross_origin"."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], FRAMING]
            await send(message)

        try:
            self._check_host(headers)
            if scope["method"] not in READING:
                _check_origin(headers)
        except ServiceError as error:
            await error_response(error)(scope, receive, send_unframed)
        else:
            await self.app(scope, receive, send_unframed)

    def _check_host(self, headers: Headers) -> None:
        """Raise Misdirected "host_not_allowed" if the request goes to a name that is not ours."""
        foreign = [host for host in headers.getlist("host") if not self._is_allowed(host)]
        if foreign:
            raise Misdirected(
                f"This service does not go by the name {foreign[0][:SHOWN]!r}. Use its IP address or localhost, or add "
                "the name to ENGINESMITH_ALLOWED_HOSTS.",
                code="host_not_allowed",
            )

    def _is_allowed(self, host: str) -> bool:
        name = _name(host)
        if ANY in self._allowed or name in self._allowed or _is_address(name):
            return True
        return any("*" + name[at:] in self._allowed for at, letter in enumerate(name) if letter == ".")


def _check_origin(headers: Headers) -> None:
    """Raise Forbidden "cross_origin" if a page of another origin sends the request.

    Sec-Fetch-Site decides if there is one. Browsers leave it out over plain HTTP to another machine, but send Origin.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in OURS or (site is None and (origin is None or _is_same(origin, headers.get("host", "")))):
        return
    raise Forbidden(
        "A web page of another origin has sent this request, and pages may change nothing here. Use the pages at "
        "/docs, or a program that is no browser.",
        code="cross_origin",
    )


def _is_same(origin: str, host: str) -> bool:
    """Whether an origin is that of this host; a proxy may have changed the scheme, so the scheme does not count."""
    return origin.partition("://")[2].lower() == host.lower()


def _name(host: str) -> str:
    """Return the name of a Host header without its port, and an IPv6 address without its brackets."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
