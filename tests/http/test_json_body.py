import asyncio
import json
from contextlib import suppress

import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import Headers
from starlette.types import Message

from app.errors import Invalid, ServiceError, TooLarge
from app.http.json_body import BYTES_PER_VALUE, JsonRequest, parse
from app.http.pools import Pools
from app.http.request_body import MAX_DEPTH
from app.http.routes import DEFAULT_BYTES, WITH_RULES_BYTES

KIB = 1024
JSON = {"Content-Type": "application/json"}
MOST = 1000
LIMIT = MOST * BYTES_PER_VALUE


def _refusal(body: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(ServiceError) as raised:
        parse(body, limit)
    return raised.value.code


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"1," * MOST + b"1]",
        b"[" + b"[]," * MOST + b"1]",
        b"{" + b",".join(b'"%d":1' % number for number in range(MOST)) + b"}",
        b"[" + b'"",' * 4 * MOST + b'""]',
        b"[" + b'"\\\\",' * 4 * MOST + b'""]',
        b"[" * 2 * MOST,
        b"," * 2 * MOST,
        b"[" + b"{}," * MOST + b"{}]",
    ],
)
def test_values_are_counted_before_anything_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda _text: pytest.fail("parsed"))
    assert _refusal(body) == "too_many_values"


def test_a_mark_at_the_start_of_the_text_is_passed_over() -> None:
    assert parse(b'\xef\xbb\xbf{"name": "a"}', LIMIT) == {"name": "a"}


@pytest.mark.parametrize("body", [b'["' + b"[{,:" * 10_000 + b'"]', b'["' + b'\\",[' * 10_000 + b'"]', b'["\\\\"]'])
def test_what_stands_in_a_string_is_no_value(body: bytes) -> None:
    assert parse(body, 50 * BYTES_PER_VALUE) == json.loads(body)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 500_000, b'"' + b"\\" * 1_000_000, b'["' + b'\\"' * 500_000 + b'"]'])
def test_no_text_makes_counting_slow(body: bytes) -> None:
    """A scan that began again at each quote would take hours here."""
    with suppress(ValueError):
        parse(body, 2 * KIB * KIB)


def test_depth_is_counted_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, LIMIT)
    monkeypatch.setattr(json, "loads", lambda _text: pytest.fail("parsed"))
    assert _refusal(b"[" * (MAX_DEPTH + 1)) == "bad_content"
    assert _refusal(b'{"a":' * (MAX_DEPTH + 1)) == "bad_content"


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (r'["a\u0000"]', "/0"),
        (r'["\ud800"]', "/0"),
        (r'["\uDFFF"]', "/0"),
        (r'{"\uDabc": 1}', ""),
        ("[NaN]", "/0"),
        ("[-Infinity]", "/0"),
        ("[1e999]", "/0"),
        ("[1E+400]", "/0"),
        ("[1" + "0" * 400 + ".0]", "/0"),
    ],
)
def test_what_cannot_be_kept_is_found_in_the_text(text: str, pointer: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse(text.encode(), LIMIT)
    assert (raised.value.code, [error.pointer for error in raised.value.errors]) == ("bad_content", [pointer])


def test_half_a_surrogate_pair_in_bytes_is_found() -> None:
    assert _refusal(b'["\xed\xa0\x80"]') == "bad_content"


@pytest.mark.parametrize(
    "text", [r'["\\u0000", "NaN", "1e999", "\ud83d\ude00"]', "[1e-999, 0.1e30]", "[" + "9" * 400 + "]"]
)
def test_what_only_looks_like_it_is_taken(text: str) -> None:
    assert parse(text.encode(), LIMIT) == json.loads(text)


@pytest.mark.parametrize("body", ['{"a": 1}'.encode("utf-16"), b'["\xff"]', b"[1", b"", b'["\x00"]'])
def test_what_is_not_json_in_utf_8_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        parse(body, LIMIT)


def test_a_call_without_rules_takes_less_than_one_with(client: TestClient) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    body = {"definition": 1, "weights": 1}
    rules = [{"parameter": f"a{number}.*", "tensors": ["x" * 200]} for number in range(2000)]
    assert DEFAULT_BYTES < len(json.dumps(rules)) < WITH_RULES_BYTES
    for path in ("bindings/check", "builds", "refits", "engines"):
        answer = client.post(f"/v1/models/m/{path}", json=body | {"rules": rules})
        assert answer.status_code not in {413, 500}, path
    answer = client.post("/v1/models/m/runs", json={"engine": 1, "inputs": "x" * DEFAULT_BYTES})
    assert (answer.status_code, answer.json()["code"]) == (413, "request_entity_too_large")
    assert str(DEFAULT_BYTES) in answer.json()["detail"]
    assert "POST /v1/models/m/runs" in answer.json()["detail"]
    assert "PUT /v1/blobs" in answer.json()["detail"]


def test_all_the_rules_that_a_binding_may_have_fit(client: TestClient) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    rules = [{"parameter": f"encoder.layer.{n}.weight", "tensors": [f"bert.layer.{n}.w"]} for n in range(4096)]
    answer = client.post("/v1/models/m/bindings/check", json={"definition": 1, "weights": 1, "rules": rules})
    assert (answer.status_code, answer.json()["code"]) == (404, "definition_not_found")


def test_a_body_of_unknown_length_is_read_up_to_the_limit() -> None:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b" " * KIB, "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/v1/models", "headers": [], "query_string": b""}
    with pytest.raises(TooLarge) as raised:
        asyncio.run(JsonRequest(scope, receive, limit=10 * KIB, parsing=Pools().parsing).load())
    assert (raised.value.code, taken) == ("request_entity_too_large", 11)


def test_too_many_values_are_413_with_a_remedy(client: TestClient) -> None:
    answer = client.post("/v1/models", content=b"[" + b"1," * 50_000 + b"1]", headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (TooLarge.status, "too_many_values")
    assert str(DEFAULT_BYTES // BYTES_PER_VALUE) in answer.json()["detail"]


def test_the_setting_lowers_every_limit(client: TestClient) -> None:
    app = client.app
    app.state.settings = app.state.settings.model_copy(update={"max_json_bytes": 100})  # type: ignore[attr-defined]
    answer = client.post("/v1/models/m/bindings/check", json={"definition": 1, "weights": 1, "rules": ["x" * 100]})
    assert (answer.status_code, "100 bytes" in answer.json()["detail"]) == (413, True)


def test_a_large_body_that_is_wrong_is_refused_with_its_first_faults(client: TestClient) -> None:
    answer = client.post("/v1/models", json={"name": "a"} | {f"x{number}": 1 for number in range(5000)})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/x{number}" for number in range(20)]
    assert Headers(answer.headers)["content-type"] == "application/problem+json"
