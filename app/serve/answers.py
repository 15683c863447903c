"""What an API answers, without anything that an API is made of."""

import http.client
from urllib.parse import urlsplit


def get(url: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return what an API answers: status and body. OSError or HTTPException where it does not."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
