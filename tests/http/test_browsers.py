import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.:8000",
        "app.localhost",
        "127.0.0.1",
        "127.0.0.1:8000",
        "10.1.2.3:80",
        "[::1]:8000",
        "[fe80::1%25eth0]",
    ],
)
def test_localhost_and_addresses_need_no_setting(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/docs", "/healthz", "/metrics", "/openapi.json"])
def test_a_name_that_may_be_rebound_is_refused_everywhere(client: TestClient, host: str, path: str) -> None:
    answer = client.get(path, headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (421, "host_not_allowed")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "ENGINESMITH_ALLOWED_HOSTS" in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("api", "api:8000", 200),
        (" Build.Example.COM , api ", "build.example.com", 200),
        ("build.example.com", "other.example.com", 421),
        ("*.example.com", "a.b.example.com", 200),
        ("*.example.com", "example.com", 421),
        ("*.example.com", "evilexample.com", 421),
        ("*", "anything.example", 200),
        ("api", "localhost", 200),
    ],
)
def test_names_are_allowed_by_the_setting(settings: Settings, allowed: str, host: str, status: int) -> None:
    app = create_app(settings.model_copy(update={"allowed_hosts": allowed}))
    with TestClient(app, "http://localhost") as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "anything"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"),
        ("PUT", "/v1/blobs/sha256:" + "0" * 64),
        ("DELETE", "/v1/models/m/aliases/a"),
        ("POST", "/v1/jobs/1/cancel"),
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    client: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = client.request(method, path, json={"name": "a"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    assert client.get("/v1/models", headers=headers).json()["data"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost"},
        {"Origin": "https://LOCALHOST"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://public.example"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_programs_and_the_services_own_pages_may_change_things(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/v1/models", json={"name": "a"}, headers=headers).status_code == 201


@pytest.mark.parametrize(("host", "path"), [("localhost", "/docs"), ("localhost", "/v1/models"), ("evil.example", "/")])
def test_no_page_may_show_ours_in_a_frame(client: TestClient, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).headers["x-frame-options"] == "DENY"
