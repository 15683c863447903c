import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.artifacts.local import LocalStore
from app.main import create_app
from app.settings import MIB, Settings
from tests.artifacts.conftest import LiveServer, digest_of, files_in

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

BYTES = np.random.default_rng(1).bytes(3 * MIB + 17)  # the same in each process that collects the tests
DIGEST = digest_of(BYTES)
URL = f"/v1/blobs/{DIGEST}"
ETAG = f'"{DIGEST}"'


@pytest.fixture
def files(settings: Settings) -> LocalStore:
    """The local store of the service under test."""
    return LocalStore(settings.artifacts_dir)


@pytest.fixture
def uploaded(client: TestClient) -> TestClient:
    assert client.put(URL, content=BYTES).status_code == 201
    return client


def test_upload_answers_201_and_then_200(client: TestClient) -> None:
    first = client.put(URL, content=BYTES)
    assert first.status_code == 201
    assert first.json() == {"digest": DIGEST, "size": len(BYTES)}
    assert first.headers["location"] == URL
    again = client.put(URL, content=BYTES)
    assert (again.status_code, again.json()) == (200, first.json())
    assert first.headers["etag"] == again.headers["etag"] == ETAG


def test_upload_of_nothing_is_a_blob_too(client: TestClient) -> None:
    url = f"/v1/blobs/{digest_of(b'')}"
    assert client.put(url, content=b"").status_code == 201
    assert client.get(url).content == b""


def test_a_recorded_blob_whose_file_was_lost_is_taken_again(uploaded: TestClient, files: LocalStore) -> None:
    files.delete(DIGEST)
    assert uploaded.get(URL).status_code == 404
    assert uploaded.put(URL, content=BYTES).status_code == 201
    assert uploaded.get(URL).content == BYTES


def damaged(files: LocalStore, content: bytes) -> None:
    path = files.unchecked_path(DIGEST)
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("content", [b"\0" * len(BYTES), BYTES[:-1], b""])
def test_a_known_blob_that_was_damaged_is_replaced(uploaded: TestClient, files: LocalStore, content: bytes) -> None:
    damaged(files, content)
    assert uploaded.put(URL, content=b"other").status_code == 422
    assert uploaded.put(URL, content=BYTES).status_code == 201
    assert uploaded.get(URL).content == files.local_path(DIGEST).read_bytes() == BYTES
    assert uploaded.put(URL, content=BYTES).status_code == 200


def test_a_damaged_blob_is_served_by_no_call_until_it_is_uploaded_again(
    uploaded: TestClient, files: LocalStore
) -> None:
    assert uploaded.get("/v1/artifacts/damaged").json()["data"] == []
    damaged(files, BYTES[:-1] + b"?")
    for headers in ({}, {"Range": "bytes=0-99"}, {"Range": "bytes=-1"}):
        answer = uploaded.get(URL, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "blob_damaged")
        assert "retry-after" not in answer.headers  # it heals by an upload and not by waiting
        assert URL in answer.json()["detail"]
    assert uploaded.head(URL).status_code == 503
    (listed,) = uploaded.get("/v1/artifacts/damaged").json()["data"]
    assert (listed["digest"], listed["damage"], listed["found_by"]) == (DIGEST, "changed", "api")
    assert 'enginesmith_artifacts_damaged{damage="changed"} 1.0' in uploaded.get("/metrics").text

    assert uploaded.put(URL, content=BYTES).status_code == 201
    assert uploaded.get(URL).content == BYTES
    assert uploaded.head(URL).status_code == 200
    assert uploaded.get("/v1/artifacts/damaged").json()["data"] == []
    assert 'enginesmith_artifacts_damaged{damage="changed"} 0.0' in uploaded.get("/metrics").text


def test_bytes_that_somebody_has_put_back_are_no_damage_any_more(uploaded: TestClient, files: LocalStore) -> None:
    damaged(files, BYTES[:-1] + b"?")
    assert uploaded.get(URL).status_code == 503
    files.unchecked_path(DIGEST).write_bytes(BYTES)
    assert uploaded.get(URL).content == BYTES
    assert uploaded.put(URL, content=BYTES).status_code == 200
    assert uploaded.get("/v1/artifacts/damaged").json()["data"] == []


def test_the_download_of_a_large_blob_is_cut_off_if_it_turns_out_to_be_damaged(
    live: LiveServer, files: LocalStore
) -> None:
    content = BYTES * 4
    url = f"/v1/blobs/{digest_of(content)}"
    assert httpx2.put(live.url + url, content=content).status_code == 201
    path = files.local_path(digest_of(content))
    path.chmod(0o644)
    path.write_bytes(b"?" + content[1:])
    with live.connect() as connection:
        connection.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(MIB), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {len(content)}" in head.decode().lower()
    assert 0 < len(body) < len(content)
    assert httpx2.get(live.url + url).json()["code"] == "blob_damaged"


def test_other_bytes_answer_422(client: TestClient, files: LocalStore) -> None:
    answer = client.put(URL, content=b"other")
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert digest_of(b"other") in answer.json()["detail"]
    assert files_in(files) == []
    assert client.head(URL).status_code == 404


@pytest.mark.parametrize("body", [BYTES, iter([BYTES])], ids=["announced", "chunked"])
def test_too_many_bytes_answer_413(settings: Settings, body: bytes | Iterator[bytes]) -> None:
    app = create_app(settings.model_copy(update={"max_blob_bytes": len(BYTES) - 1}))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        answer = client.put(URL, content=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert str(len(BYTES) - 1) in answer.json()["detail"]


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
@pytest.mark.parametrize("digest", ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", DIGEST.upper(), "..%2Fx"])
def test_what_is_no_digest_answers_422(client: TestClient, method: str, digest: str) -> None:
    answer = client.request(method, f"/v1/blobs/{digest}")
    if digest == "..%2Fx":  # a slash makes it another route
        assert answer.status_code == 404
        return
    assert answer.status_code == 422
    if method != "HEAD":
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "bad_digest"
        assert "sha256sum" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_missing_blob_answers_404(client: TestClient, method: str) -> None:
    answer = client.request(method, URL)
    assert answer.status_code == 404
    if method == "GET":
        assert answer.json()["code"] == "blob_not_found"
        assert f"PUT {URL}" in answer.json()["detail"]


def test_download_and_head_carry_the_same_headers(uploaded: TestClient) -> None:
    got, head = uploaded.get(URL), uploaded.head(URL)
    assert (got.status_code, got.content) == (200, BYTES)
    assert (head.status_code, head.content) == (200, b"")
    wanted = {
        "etag": ETAG,
        "accept-ranges": "bytes",
        "content-length": str(len(BYTES)),
        "content-type": "application/octet-stream",
    }
    for answer in (got, head):
        assert {name: answer.headers[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=100-2000000", 100, 2_000_001), ("bytes=-17", len(BYTES) - 17, len(BYTES))],
)
def test_a_range_answers_206(uploaded: TestClient, value: str, start: int, stop: int) -> None:
    answer = uploaded.get(URL, headers={"Range": value})
    assert (answer.status_code, answer.content) == (206, BYTES[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(BYTES)}"
    assert answer.headers["content-length"] == str(stop - start)


def test_a_range_beyond_the_end_answers_416(uploaded: TestClient) -> None:
    answer = uploaded.get(URL, headers={"Range": f"bytes={len(BYTES)}-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(BYTES)}"


@pytest.mark.parametrize("value", ["bytes=0-1,5-6", "lines=1-2", "bytes=5-2"])
def test_a_range_it_does_not_serve_answers_everything(uploaded: TestClient, value: str) -> None:
    answer = uploaded.get(URL, headers={"Range": value})
    assert (answer.status_code, answer.content) == (200, BYTES)


@pytest.mark.parametrize(("if_range", "status"), [(ETAG, 206), ('"other"', 200), (f"W/{ETAG}", 200)])
def test_if_range_sends_everything_when_the_bytes_are_others(uploaded: TestClient, if_range: str, status: int) -> None:
    answer = uploaded.get(URL, headers={"Range": "bytes=0-9", "If-Range": if_range})
    assert answer.status_code == status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("value", "status"), [(ETAG, 304), ("*", 304), (f'"a", W/{ETAG}', 304), ('"a"', 200), (DIGEST, 200)]
)
def test_if_none_match_answers_304(uploaded: TestClient, method: str, value: str, status: int) -> None:
    answer = uploaded.request(method, URL, headers={"If-None-Match": value})
    assert answer.status_code == status
    assert answer.headers["etag"] == ETAG
    if status == 304:
        assert answer.content == b""


@pytest.mark.parametrize(("value", "status"), [(ETAG, 200), ("*", 200), ('"other"', 412)])
def test_if_match_answers_412_when_the_bytes_are_others(uploaded: TestClient, value: str, status: int) -> None:
    assert uploaded.get(URL, headers={"If-Match": value}).status_code == status


@pytest.mark.parametrize("length", [len(BYTES), len(BYTES) + 10_000_000])
def test_a_client_that_goes_away_leaves_nothing(live: LiveServer, files: LocalStore, length: int) -> None:
    with live.connect() as connection:
        connection.sendall(f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        connection.sendall(BYTES[: 2 * MIB + 500_000])
    live.stop()
    assert files_in(files) == []


def test_a_known_blob_is_answered_before_its_body_and_the_connection_stays_usable(live: LiveServer) -> None:
    head = f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BYTES)}\r\n\r\n".encode()
    with live.connect() as connection:
        connection.sendall(head + BYTES)
        assert connection.recv(4096).startswith(b"HTTP/1.1 201")
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(BYTES)
        connection.sendall(f"HEAD {URL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_expect_100_continue_spares_sending_a_known_blob(live: LiveServer) -> None:
    head = (
        f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(BYTES)}\r\n\r\n"
    ).encode()
    with live.connect() as connection:
        connection.sendall(head)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BYTES)
        assert connection.recv(4096).startswith(b"HTTP/1.1 201")
    with live.connect() as connection:
        connection.sendall(head)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()


def test_a_client_that_tires_of_waiting_for_the_check_of_a_known_blob_keeps_its_connection(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (
        f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(BYTES)}\r\n\r\n"
    ).encode()
    with live.connect() as connection:
        connection.sendall(head)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BYTES)
        assert connection.recv(4096).startswith(b"HTTP/1.1 201")
        monkeypatch.setattr("app.artifacts.router.CLIENT_PATIENCE_S", 0.0)
        connection.sendall(head + BYTES)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(f"HEAD {URL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_curl_uploads_downloads_and_resumes(live: LiveServer, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(BYTES)
    target.write_bytes(BYTES[:MIB])
    write_out = ["-sS", "-o", os.devnull, "-w", "%{http_code}"]

    def curl(*arguments: str | Path) -> str:
        return subprocess.run(["curl", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout

    assert curl(*write_out, "-T", source, f"{live.url}{URL}") == "201"
    assert curl(*write_out, "-T", source, f"{live.url}{URL}") == "200"
    assert curl(*write_out, "-H", "Transfer-Encoding: chunked", "-T", source, f"{live.url}{URL}") == "200"
    curl("-sS", "--fail", "-C", "-", "-o", target, f"{live.url}{URL}")
    assert target.read_bytes() == BYTES
