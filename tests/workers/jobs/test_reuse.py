"""Which equal engines are reused, by how strongly they have been verified and how strongly a request wants it."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import update

from app.engines.tables import Engine
from tests.workers.networks import attention
from tests.workers.service import Service, service_with
from tests.workers.weight_holding import HostInProcess
from workers.channel.host import EngineHostDied
from workers.channel.messages import BackendError, Build, Refit, Request, Verify
from workers.engine_host import verification
from workers.engine_host.impossible import Impossible
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

BUILD = {"definition": 1, "weights": 1}
UNVERIFIED = {"verify": {"against": "none"}}
REUSED = {"engine": 1, "reused": True, "method": "reuse"}


@pytest.fixture
def host(tmp_path: Path) -> HostInProcess:
    (tmp_path / "host").mkdir()
    return HostInProcess(tmp_path / "host")


@pytest.fixture
def net(client: TestClient, worker: Worker, host: HostInProcess, tmp_path: Path) -> Service:
    """A service with the definition of an attention layer, whose input is "ids"."""
    network = attention(tmp_path / "network.onnx")
    return service_with(client, replace(worker, host=host), network, network.weights(1))  # type: ignore[arg-type]


@pytest.fixture
def requests(host: HostInProcess) -> list[Request]:
    """What the engine host is asked for."""
    asked: list[Request] = []
    host.before = asked.append
    return asked


def own(net: Service, engine: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = net.client.get(f"/v1/models/net/engines/{engine}").json()["verification"]
    return found


def test_a_build_that_asks_for_a_verification_verifies_an_equal_engine_that_has_none(
    net: Service, requests: list[Request]
) -> None:
    net.result("/builds", BUILD | UNVERIFIED)
    assert own(net)["ok"] is None
    assert net.result("/builds", BUILD) == REUSED | {"verified": True}
    assert [type(one) for one in requests] == [Build, Verify]
    assert (own(net)["ok"], own(net)["against"], own(net)["sees"]["of"]) == (True, "reference", 15)
    answer = net.client.post("/v1/models/net/builds", json=BUILD)
    assert (answer.status_code, answer.json()["result"]) == (200, REUSED)


def test_a_refit_that_asks_for_a_verification_verifies_an_equal_engine_that_has_none(
    net: Service, requests: list[Request]
) -> None:
    net.result("/builds", BUILD)
    body = {"engine": 1, "weights": net.add_weights({"v.bias": np.ones(16, np.float32)})}
    net.result("/refits", body | UNVERIFIED)
    assert net.result("/refits", body) == REUSED | {"engine": 2, "verified": True}
    assert [type(one) for one in requests] == [Build, Refit, Verify]
    assert (own(net, 2)["ok"], own(net, 2)["sees"]) == (True, own(net)["sees"])
    assert net.client.post("/v1/models/net/refits", json=body).status_code == 200


def test_the_cheapest_way_to_an_engine_verifies_an_equal_one_that_has_no_verification(
    net: Service, requests: list[Request]
) -> None:
    net.result("/builds", BUILD | UNVERIFIED)
    assert net.result("/engines", {"weights": 1}) == REUSED | {"verified": True}
    assert [type(one) for one in requests] == [Build, Verify]


def test_an_equal_engine_that_fails_its_verification_says_so_and_another_is_made(net: Service) -> None:
    net.result("/builds", BUILD | UNVERIFIED)
    faults = iter([["made up for a test"]])
    with patch.object(verification, "_emptiness", lambda _outputs: next(faults, [])):
        result = net.result("/builds", BUILD)
    assert (result["engine"], result["reused"]) == (2, False)
    assert [own(net, engine)["ok"] for engine in (1, 2)] == [False, True]
    for body in (BUILD, BUILD | UNVERIFIED):  # the one that failed is not given to anybody
        assert net.client.post("/v1/models/net/builds", json=body).json()["result"]["engine"] == 2


def test_a_host_that_dies_of_verifying_an_equal_engine_says_nothing_against_the_compiler(
    net: Service, host: HostInProcess
) -> None:
    net.result("/builds", BUILD | UNVERIFIED)

    def die(request: Request) -> None:
        assert isinstance(request, Verify)
        raise EngineHostDied("The engine host was killed by SIGSEGV.", status=-signal.SIGSEGV)

    host.before = die
    job = net.do("/builds", BUILD)
    run_job(net.worker, job["id"])
    assert net.job(job["id"])["error"]["code"] == "engine_host_died_twice"
    assert net.client.get("/v1/models/net/definitions/1").json()["crashes"] == []


def test_a_verification_that_is_impossible_is_not_recorded_in_place_of_a_weaker_one(net: Service) -> None:
    net.result("/builds", BUILD | {"verify": {"against": "finite"}})
    asked = {"against": "reference", "if_impossible": "publish"}
    impossible = Impossible(BackendError("verification_impossible", "It cannot be computed."))
    with patch.object(verification, "_opened", side_effect=impossible):
        assert net.result("/builds", BUILD | {"verify": asked}) == REUSED | {"verified": None}
    assert (own(net)["ok"], own(net)["against"]) == (True, "finite")


@pytest.mark.parametrize(
    ("first", "later", "status"),
    [
        ({}, {"against": "none"}, 200),
        ({}, {"against": "finite"}, 200),
        ({}, {"against": "rebuild"}, 200),
        ({"against": "rebuild"}, {"against": "rebuild"}, 200),
        ({"against": "rebuild"}, {}, 202),
        ({"against": "finite"}, {"against": "rebuild"}, 202),
        ({"tolerance": {"relative_l2": 0.5}}, {}, 202),
        ({"tolerance": {"relative_l2": 0.5}}, {"tolerance": {"relative_l2": 0.5}}, 200),
        ({"coverage": "none"}, {}, 200),
        ({"coverage": "none"}, {"coverage": "full"}, 202),
        ({"coverage": "full"}, {"coverage": "full"}, 200),
    ],
)
def test_an_engine_is_reused_at_once_if_it_is_verified_as_strongly_as_asked(
    net: Service, first: dict[str, Any], later: dict[str, Any], status: int
) -> None:
    net.result("/builds", BUILD | {"verify": first})
    assert net.client.post("/v1/models/net/builds", json=BUILD | {"verify": later}).status_code == status


def test_inputs_of_a_client_are_run_unless_they_were(net: Service) -> None:
    net.result("/builds", BUILD)
    inputs = net.upload(save({"ids": np.arange(6).reshape(1, 6)}))
    body = BUILD | {"verify": {"inputs": inputs}}
    assert net.result("/builds", body) == REUSED | {"verified": True}
    assert own(net)["asked"]["inputs"] == inputs
    assert net.client.post("/v1/models/net/builds", json=body).status_code == 200


def test_a_weaker_verification_is_not_recorded_in_place_of_a_stronger_one(net: Service) -> None:
    net.result("/builds", BUILD)
    inputs = net.upload(save({"ids": np.arange(6).reshape(1, 6)}))
    assert net.result("/builds", BUILD | {"verify": {"against": "finite", "inputs": inputs}})["verified"] is True
    assert own(net)["against"] == "reference"


def test_an_engine_that_could_not_be_verified_is_reused_by_those_who_allow_that(net: Service) -> None:
    net.result("/builds", BUILD)
    with net.worker.database.transaction() as session:
        session.execute(update(Engine).values(verification={"ok": None, "against": "reference", "asked": {}}))
    allowed = BUILD | {"verify": {"if_impossible": "publish"}}
    assert net.client.post("/v1/models/net/builds", json=allowed).status_code == 200
    assert net.result("/builds", BUILD) == REUSED | {"verified": True}


def test_bounds_of_one_client_fail_an_engine_for_that_client_alone(net: Service) -> None:
    net.result("/builds", BUILD)
    passed = own(net)
    strict = BUILD | {"verify": {"tolerance": {"relative_l2": 0, "max_abs": 0, "cosine": 1}}}
    assert net.do("/builds", strict)["error"]["code"] == "verification_failed"
    assert own(net) == passed
    inputs = net.upload(save({"ids": np.arange(6).reshape(1, 6)}))
    wrong = net.upload(save({"y": np.full((1, 6, 16), 1e6, np.float32)}))
    expecting = BUILD | {"verify": {"inputs": inputs, "expected": wrong}}
    assert net.do("/builds", expecting)["error"]["code"] == "verification_failed"
    assert own(net) == passed
    assert net.client.post("/v1/models/net/builds", json=BUILD).json()["result"] == REUSED


def test_wider_bounds_are_not_recorded_in_place_of_narrower_ones(net: Service) -> None:
    net.result("/builds", BUILD)
    assert net.result("/builds", BUILD | {"verify": {"tolerance": {"relative_l2": 0.5}}})["verified"] is True
    assert own(net)["asked"] == {"against": "reference"}
    assert net.client.post("/v1/models/net/builds", json=BUILD).status_code == 200


def test_a_verification_of_its_own_is_the_first_that_an_engine_has(net: Service) -> None:
    net.result("/builds", BUILD | UNVERIFIED)
    net.result("/engines/1/verify", {})
    assert (own(net)["ok"], own(net)["against"]) == (True, "reference")
    assert net.client.post("/v1/models/net/builds", json=BUILD).status_code == 200
    net.result("/engines/1/verify", {"against": "finite"})
    assert own(net)["against"] == "reference"
