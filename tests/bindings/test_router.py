import hashlib
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.artifacts import service as artifacts
from app.bindings.report import BindingReport
from app.database import Database
from app.definitions.parameter import Parameter
from app.definitions.tables import Definition
from app.registry import service as registry

CHECK = "/v1/models/m/bindings/check"
PARAMETERS = [Parameter("dense.weight", (2, 3), "F32"), Parameter("dense.bias", (2,), "F32")]


@pytest.fixture(autouse=True)
def definition(database: Database) -> None:
    """A model with definition 1, whose own rule ignores position_ids."""
    digest = "sha256:" + "d" * 64
    with database.transaction() as session:
        model = registry.create_model(session, "m", "", {})
        artifacts.record(session, digest, 1)
        session.add(
            Definition(
                model_id=model.id,
                version=1,
                digest=digest,
                source={},
                inputs=[],
                outputs=[],
                parameter_count=len(PARAMETERS),
                parameters=[parameter.to_json() for parameter in PARAMETERS],
                rules=[{"ignore": r".*position_ids"}],
            )
        )


def _weights(client: TestClient, **tensors: np.ndarray[Any, np.dtype[Any]]) -> int:
    raw = save({name.replace("__", "."): array for name, array in tensors.items()})
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    client.put(f"/v1/blobs/{digest}", content=raw).raise_for_status()
    answer = client.post("/v1/models/m/weights", json={"files": [digest]})
    answer.raise_for_status()
    version: int = answer.json()["version"]
    return version


def _check(client: TestClient, weights: int, rules: list[Any] | None = None) -> dict[str, Any]:
    answer = client.post(CHECK, json={"definition": 1, "weights": weights, "rules": rules or []})
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def test_a_fitting_checkpoint_is_ok(client: TestClient) -> None:
    position_ids = np.arange(4)
    number = _weights(
        client,
        dense__weight=np.zeros((2, 3), np.float16),
        dense__bias=np.zeros(2, np.float32),
        position_ids=position_ids,
    )
    report = _check(client, number)
    assert report["ok"]
    assert (report["definition"], report["weights"]) == (1, number)
    assert report["ignored"] == ["position_ids"]
    assert report["warnings"] == report["problems"] == []
    assert report["bindings"][0] == {
        "parameter": "dense.weight",
        "dtype": "F32",
        "shape": [2, 3],
        "tensors": ["dense.weight"],
        "transforms": [{"op": "cast", "dtype": "F32"}],
    }
    assert BindingReport.from_json(report).digest == report["digest"]


def test_a_missing_and_a_misshapen_tensor_are_told_together(client: TestClient) -> None:
    number = _weights(client, dense__weight=np.zeros((3, 2), np.float32), extra=np.zeros(1, np.float32))
    report = _check(client, number)
    assert not report["ok"]
    shape, missing, extra = report["problems"]
    assert (missing["kind"], missing["parameter"]) == ("missing", "dense.bias")
    assert shape["kind"] == "wrong_shape"
    assert (shape["expected"]["shape"], shape["actual"]["shape"]) == ([2, 3], [3, 2])
    assert (extra["kind"], extra["parameter"], extra["tensors"]) == ("unexpected", None, ["extra"])


def test_the_requests_rules_are_used(client: TestClient) -> None:
    number = _weights(client, w=np.zeros((3, 2), np.float32), b=np.zeros(2, np.float32))
    rules = [
        {"parameter": r"dense\.weight", "tensors": ["w"], "transforms": [{"op": "transpose", "perm": [1, 0]}]},
        {"parameter": r"dense\.bias", "tensors": ["b"]},
        {"ignore": "nothing"},
    ]
    report = _check(client, number, rules)
    assert report["ok"]
    assert [warning["rule"] for warning in report["warnings"]] == [2]


def test_a_rule_that_cannot_be_used_is_pointed_at(client: TestClient) -> None:
    number = _weights(client, w=np.zeros(1, np.float32))
    body = {"definition": 1, "weights": number, "rules": [{"ignore": "a"}, {"ignore": "(a"}]}
    answer = client.post(CHECK, json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "bad_rule"
    assert problem["errors"][0]["pointer"] == "/rules/1"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"definition": 9, "weights": 1}, "definition_not_found"),
        ({"definition": 1, "weights": 9}, "weights_not_found"),
    ],
)
def test_what_does_not_exist_is_not_found(client: TestClient, body: dict[str, int], code: str) -> None:
    answer = client.post(CHECK, json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, code)


@pytest.mark.parametrize("number", [0, 10**30])
def test_a_number_that_no_database_holds_is_refused(client: TestClient, number: int) -> None:
    answer = client.post(CHECK, json={"definition": number, "weights": number})
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/definition", "/weights"]


def test_a_check_and_a_proposal_tell_the_rules_that_would_help(client: TestClient) -> None:
    number = _weights(
        client, model__dense__weight=np.zeros((3, 2), np.float32), model__dense__bias=np.zeros(2, np.float32)
    )
    body = {"definition": 1, "weights": number, "rules": [{"ignore": "nothing"}]}
    checked = _check(client, number)
    assert not checked["ok"]
    assert checked["unclear"] == []
    answer = client.post("/v1/models/m/bindings/propose", json=body)
    assert answer.status_code == 200, answer.text
    proposed = answer.json()
    turned = {
        "parameter": r"dense\.weight",
        "tensors": ["model.dense.weight"],
        "transforms": [{"op": "transpose", "perm": [1, 0]}],
    }
    plain = {"parameter": r"dense\.bias", "tensors": ["model.dense.bias"]}
    assert proposed["ok"]
    assert [one["rule"] for one in proposed["proposals"]] == [turned, plain]
    assert proposed["proposals"] == checked["proposals"]
    assert proposed["rules"] == [turned, plain, {"ignore": "nothing"}]
    assert proposed["report"] == _check(client, number, proposed["rules"])


def test_a_proposal_with_a_doubt_is_not_ok(client: TestClient) -> None:
    number = _weights(client, x=np.zeros((2, 3), np.float32), y=np.zeros((2, 3), np.float32), b=np.zeros(2, np.float32))
    body = {"definition": 1, "weights": number}
    proposed = client.post("/v1/models/m/bindings/propose", json=body).json()
    assert not proposed["ok"]
    assert [(one["parameters"], one["tensors"]) for one in proposed["unclear"]] == [(["dense.weight"], ["x", "y"])]
    assert [one["parameters"] for one in proposed["proposals"]] == [["dense.bias"]]
