"""Damage of any kind of artifact, and rows that were changed: a job that meets one fails and says what to do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy import select, update

from app.artifacts.signing import PlanSigner
from app.engines.tables import Engine
from tests.workers.networks import Network, Weights
from tests.workers.service import Array, Service, computed, with_weights

Change = Callable[[bytes], bytes]
DAMAGES: dict[str, Change] = {
    "a bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "cut short": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
}


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def second(net: Service, network: Network) -> Weights:
    """The values of weight version 2, of which engine 2 is refitted."""
    weights = network.weights(seed=2)
    version = net.add_weights({name: np.ascontiguousarray(value) for name, value in weights.items()})
    assert net.result("/refits", {"engine": 1, "weights": version})["engine"] == 2
    return weights


@pytest.fixture
def change(net: Service) -> Callable[[str, Change], Path]:
    """Damage an artifact, leave it the times that it had, and return where it lies."""

    def change(digest: str, how: Change) -> Path:
        path = net.worker.store.unchecked_path(digest)
        before = path.stat()
        path.chmod(0o644)
        path.write_bytes(how(path.read_bytes()))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return path

    return change


def definition_of(net: Service) -> str:
    digest: str = net.client.get("/v1/models/net/definitions/1").json()["digest"]
    return digest


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_definition_fails_jobs_with_a_remedy_and_heals_when_it_is_posted_again(
    net: Service,
    network: Network,
    weights: Weights,
    x: Array,
    change: Callable[[str, Change], Path],
    how: Change,
) -> None:
    change(definition_of(net), how)
    for path, body in (
        ("/builds", {"definition": 1, "weights": 1, "reuse": False}),
        ("/refits", {"engine": 1, "weights": 1, "reuse": False}),
        ("/runs", {"engine": 1, "inputs": net.upload(save({"x": x}))}),
    ):
        job = net.do(path, body)
        assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "blob_damaged", 1)
        assert "post the definition again" in job["error"]["detail"]
    assert len(net.engines()) == 1
    (listed,) = net.client.get("/v1/artifacts/damaged").json()["data"]
    assert listed["used_by"] == [{"kind": "definition", "model": "net", "number": 1, "name": None}]
    assert "post the definition again" in listed["remedy"]

    net.post("/definitions", {"onnx": net.upload(with_weights(network, weights))})
    assert net.client.get("/v1/artifacts/damaged").json()["data"] == []
    net.result("/builds", {"definition": 1, "weights": 1, "reuse": False})


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_inputs_run_nothing_and_verify_nothing(
    net: Service, x: Array, change: Callable[[str, Change], Path], how: Change
) -> None:
    content = save({"x": x})
    inputs = net.upload(content)
    net.result("/runs", {"engine": 1, "inputs": inputs})
    change(inputs, how)
    assert net.do("/runs", {"engine": 1, "inputs": inputs})["error"]["code"] == "blob_damaged"
    verify = net.do("/engines/1/verify", {"against": "reference", "inputs": inputs})
    assert verify["error"]["code"] == "blob_damaged"
    net.upload(content)
    net.result("/runs", {"engine": 1, "inputs": inputs})


def test_a_damaged_plan_is_neither_loaded_nor_served(net: Service, change: Callable[[str, Change], Path]) -> None:
    plan = net.engines()[0]["plan_digest"]
    assert net.client.get("/v1/models/net/engines/1/plan").status_code == 200
    change(plan, DAMAGES["a bit"])
    for url in ("/v1/models/net/engines/1/plan", f"/v1/blobs/{plan}"):
        answer = net.client.get(url)
        assert (answer.status_code, answer.json()["code"]) == (503, "blob_damaged")
        assert net.client.head(url).status_code == 503
    assert net.do("/refits", {"engine": 1, "weights": 1, "reuse": False})["error"]["code"] == "plan_damaged"
    (listed,) = net.client.get("/v1/artifacts/damaged").json()["data"]
    assert listed["used_by"][0] == {"kind": "engine", "model": "net", "number": 1, "name": None}


def test_a_resident_engine_whose_weights_are_written_to_runs_no_longer(
    net: Service, weights: Weights, x: Array
) -> None:
    np.testing.assert_allclose(net.run(1, x), computed(weights, x), rtol=1e-5, atol=1e-6)
    blob = net.client.get("/v1/models/net/weights/1/tensors").json()["data"][0]["blob"]
    path = net.worker.store.unchecked_path(blob)
    content = path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:  # in the very file that the engine may have mapped
        file.seek(-8, os.SEEK_END)
        file.write(b"\x00\x00\x00\x7f")
    inputs = net.upload(save({"x": x}))
    assert net.do("/runs", {"engine": 1, "inputs": inputs})["error"]["code"] == "weights_damaged"
    listed = net.client.get("/v1/artifacts/damaged").json()["data"]
    assert [(one["digest"], one["found_by"]) for one in listed] == [(blob, "worker")]
    assert {"kind": "weights", "model": "net", "number": 1, "name": None} in listed[0]["used_by"]
    net.upload(content)
    np.testing.assert_allclose(net.run(1, x), computed(weights, x), rtol=1e-5, atol=1e-6)


def rows_of(net: Service) -> list[Engine]:
    with net.worker.database.reading() as session:
        return list(session.scalars(select(Engine).order_by(Engine.number)))


def set_row(net: Service, number: int, **values: Any) -> None:  # noqa: ANN401 - of any column
    with net.worker.database.transaction() as session:
        session.execute(update(Engine).where(Engine.number == number).values(**values))


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    "columns",
    [
        ("plan_digest", "plan_bytes", "plan_signature"),
        ("plan_digest", "plan_bytes", "plan_signature", "signature_form"),
        ("weights_id", "weights"),
        ("weights_id", "weights", "plan_signature"),
        ("job_id",),
        ("method",),
        ("parent",),
    ],
    ids=" ".join,
)
def test_an_engine_whose_row_was_given_what_is_of_another_one_is_not_loaded(
    net: Service, x: Array, columns: tuple[str, ...]
) -> None:
    first, second = rows_of(net)
    inputs = net.upload(save({"x": x}))
    set_row(net, 2, **{column: getattr(first, column) for column in columns})
    job = net.do("/runs", {"engine": 2, "inputs": inputs})
    assert (job["state"], job["error"]["code"]) == ("failed", "bad_signature")
    set_row(net, 2, **{column: getattr(second, column) for column in columns})
    net.result("/runs", {"engine": 2, "inputs": inputs})


def test_an_engine_of_the_release_before_goes_on_working_and_its_refits_are_signed_anew(
    net: Service, second: Weights, x: Array, signer: PlanSigner
) -> None:
    row = rows_of(net)[0]
    digest = str(row.plan_digest)
    old = signer._private_key.sign(b"enginesmith plan v1\n" + digest.encode()).hex()
    set_row(net, 1, plan_signature=old, signature_form=1)
    net.run(1, x)
    changed = net.add_weights({"0.bias": np.asarray(second["0.bias"]) + 1})
    refitted = net.result("/refits", {"engine": 1, "weights": changed})["engine"]
    assert rows_of(net)[refitted - 1].signature_form == 2
    set_row(net, refitted, plan_signature=old)
    failed = net.do("/runs", {"engine": refitted, "inputs": net.upload(save({"x": x}))})
    assert failed["error"]["code"] == "bad_signature"


@pytest.fixture
def signer(net: Service) -> PlanSigner:
    return net.worker.signer
