"""What a client is told when its connection is ended before the application could answer."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from app.http.problems import MEDIA_TYPE, Problem

NO_REQUEST: Final = "-"  # the request id: none was given yet


@dataclass(frozen=True, slots=True)
class Refusal:
    """A whole answer, ready to be sent; `code` counts it."""

    code: str
    answer: bytes


def _refusal(status: int, detail: str, code: str, *headers: str) -> Refusal:
    phrase = HTTPStatus(status).phrase
    body = Problem(title=phrase, status=status, detail=detail, code=code, request_id=NO_REQUEST).model_dump_json()
    head = [
        f"HTTP/1.1 {status} {phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
        *headers,
    ]
    return Refusal(code, ("\r\n".join(head) + "\r\n\r\n" + body).encode())


MALFORMED: Final = _refusal(400, "This is no HTTP/1.1 request. Check what speaks to this port.", "malformed_request")
HEADERS_TOO_LARGE: Final = _refusal(
    431,
    "The request line and headers are longer than ENGINESMITH_MAX_HEADER_BYTES. Send fewer, or have it raised.",
    "headers_too_large",
)
HEADERS_TOO_SLOW: Final = _refusal(
    408,
    "The headers did not arrive within ENGINESMITH_HEADER_TIMEOUT_S. Send the request again on a new connection.",
    "headers_too_slow",
)
BODY_TOO_SLOW: Final = _refusal(
    408,
    "The body arrived slower than ENGINESMITH_MIN_TRANSFER_RATE for ENGINESMITH_SLOW_TRANSFER_S; nothing was kept. "
    "Send the request again on a new connection.",
    "body_too_slow",
)
CROWDED_OUT: Final = _refusal(
    503,
    "There are more connections than the service takes, and this one had to give way to others. Send the request again "
    "in a moment, and send it whole.",
    "crowded_out",
    "retry-after: 1",
)
TOO_MANY_CONNECTIONS: Final = _refusal(
    503,
    "There are as many connections as the service takes, in all or from your address, and all are at work. Send the "
    "request again in a moment, use fewer connections, or have ENGINESMITH_MAX_CONNECTIONS or "
    "ENGINESMITH_MAX_CONNECTIONS_PER_ADDRESS raised.",
    "too_many_connections",
    "retry-after: 1",
)
