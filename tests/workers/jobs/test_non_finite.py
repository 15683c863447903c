"""NaN and infinities of weights: counted at the upload, named by the report, refused unless they are allowed."""

import numpy as np
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.database import Database
from app.weights.tables import MAX_NON_FINITE
from tests.workers.networks import Network
from tests.workers.service import Array, Service, service_with
from workers.jobs.worker import Worker

NAN = "1.bias"  # of the last layer, so that most outputs stay finite


@pytest.fixture
def diverged(network: Network) -> Array:
    array = np.array(network.weights(seed=2)[NAN])
    array[:3], array[3] = np.nan, -np.inf
    return array


def test_a_version_tells_what_is_not_finite_in_it(net: Service, diverged: Array) -> None:
    version = net.post("/weights", {"files": [net.upload(save({NAN: diverged}))], "base": 1})
    assert version["non_finite"] == [{"name": NAN, "nan": 3, "inf": 1}]
    assert version["non_finite_count"] == 1
    assert net.client.get(f"/v1/models/net/weights/{version['version']}").json() == version
    other = net.add_weights({"0.bias": np.ones(8, np.float32)}, base=version["version"])
    assert net.client.get(f"/v1/models/net/weights/{other}").json()["non_finite"] == version["non_finite"]
    finite = net.add_weights({NAN: np.nan_to_num(diverged, neginf=0)}, base=version["version"])
    assert net.client.get(f"/v1/models/net/weights/{finite}").json()["non_finite"] == []
    assert net.client.get("/v1/models/net/weights/1").json()["non_finite"] == []


def test_many_tensors_that_are_not_finite_are_counted_and_the_first_named(net: Service) -> None:
    tensors = {f"{number:04}": np.array([np.nan], np.float16) for number in range(MAX_NON_FINITE + 7)}
    version = net.post("/weights", {"files": [net.upload(save(tensors))]})
    assert version["non_finite_count"] == len(tensors)
    assert [one["name"] for one in version["non_finite"]] == sorted(tensors)[:MAX_NON_FINITE]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/builds", {"definition": 1}),
        ("/refits", {"engine": 1}),
        ("/engines", {"definition": 1, "backend": "onnxruntime"}),
    ],
)
def test_they_are_refused_unless_they_are_allowed(
    net: Service, diverged: Array, path: str, body: dict[str, object]
) -> None:
    request = body | {"weights": net.add_weights({NAN: diverged})}
    answer = net.client.post(f"/v1/models/net{path}", json=request)
    assert (answer.status_code, answer.json()["code"]) == (422, "non_finite_weights")
    assert NAN in answer.json()["detail"]
    assert answer.json()["errors"] == [{"pointer": "/weights", "detail": f"{NAN} is not finite"}]
    allowed = request | {"allow_non_finite": True}
    assert net.result(path, allowed)["engine"] == 2


def test_a_report_names_those_that_feed_parameters(net: Service, diverged: Array) -> None:
    fed = net.add_weights({NAN: diverged, "spare": np.full(4, np.inf, np.float32)})
    rules = [{"ignore": "spare"}]
    report = net.post("/bindings/check", {"definition": 1, "weights": fed, "rules": rules})
    assert report["ok"]
    (warning,) = report["warnings"]
    assert f"{NAN} (3 NaN, 1 infinite)" in warning["detail"]
    assert "spare" not in warning["detail"]


def test_infinities_that_the_definition_came_with_are_meant(
    client: TestClient, worker: Worker, network: Network
) -> None:
    mask = np.array([-np.inf, 0, -np.inf, 0, 0, 0, 0, 0], np.float32)
    net = service_with(client, worker, network, {**network.weights(seed=1), NAN: mask})
    report = net.post("/bindings/check", {"definition": 1, "weights": 1})
    assert any(f"{NAN} (0 NaN, 2 infinite)" in one["detail"] and "meant" in one["detail"] for one in report["warnings"])
    assert net.result("/builds", {"definition": 1, "weights": 1})["engine"] == 1
    moved = net.add_weights({NAN: mask[::-1] + 0})
    assert net.result("/refits", {"engine": 1, "weights": moved})["engine"] == 2
    for worse in (np.full(8, -np.inf, np.float32), np.where(np.isinf(mask), np.nan, mask)):
        answer = net.client.post("/v1/models/net/refits", json={"engine": 1, "weights": net.add_weights({NAN: worse})})
        assert answer.json()["code"] == "non_finite_weights"


def test_what_feeds_no_parameter_is_not_refused(net: Service) -> None:
    spare = net.add_weights({"spare": np.full(4, np.inf, np.float32)})
    assert net.result("/builds", {"definition": 1, "weights": spare, "rules": [{"ignore": "spare"}]})["engine"] == 2


def test_weights_embedded_in_an_onnx_file_are_counted_too(
    client: TestClient, worker: Worker, network: Network, diverged: Array
) -> None:
    service_with(client, worker, network, {**network.weights(seed=1), NAN: diverged})
    assert client.get("/v1/models/net/weights/1").json()["non_finite"] == [{"name": NAN, "nan": 3, "inf": 1}]


def test_versions_that_nobody_counted_in_are_not_refused(net: Service, diverged: Array, database: Database) -> None:
    content = save({NAN: diverged})
    body = {"files": [net.upload(content)], "base": 1}
    version = net.post("/weights", body)["version"]
    with database.transaction() as session:
        session.execute(sa.text("UPDATE weight_versions SET non_finite = NULL"))
        session.execute(sa.text("UPDATE checkpoint_files SET non_finite = NULL"))
    answer = net.client.get(f"/v1/models/net/weights/{version}").json()
    assert (answer["non_finite"], answer["non_finite_count"]) == (None, None)
    assert net.post("/weights", body)["non_finite"] is None
    assert net.result("/builds", {"definition": 1, "weights": version})["engine"] == 2
