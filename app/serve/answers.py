"""Asking a running API, without importing FastAPI or any other library of the API."""

import http.client
from urllib.parse import urlsplit


def get(url: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return the status and the body that an API answers; raises OSError or HTTPException if it does not answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
