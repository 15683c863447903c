"""A service with a GPU, used as a client uses it."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.checkpoints import gpt2_config, parameters, write_checkpoint
from examples.client import Client, ServiceProblem
from examples.service import running

SIZES = {"min": [1, 1], "opt": [1, 16], "max": [2, 32]}
PROFILES = [{"input_ids": SIZES, "attention_mask": SIZES}]
BUILD: dict[str, Any] = {
    "definition": 1,
    "weights": 1,
    "profiles": PROFILES,
    "options": {"optimization_level": 1},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A model with three weight versions, of a service with the first GPU and the CPU."""
    folder = tmp_path_factory.mktemp("service")
    with running(folder / "data", devices=("cuda:0", "cpu")) as (url, _pid):
        client = Client(url, "gpt2")
        client.call("POST", "/v1/models", {"name": "gpt2"})
        config = gpt2_config(2, 128, vocab=512, positions=64)
        client.post("definitions", {"family": "gpt2", "config": config, "precision": "fp16"})
        rows = parameters(client, 1)
        for seed in (1, 2, 3):
            path = folder / f"{seed}.safetensors"
            write_checkpoint(path, rows, seed=seed, dtype="F16")
            client.post("weights", {"files": [client.upload(path)]})
        yield client


def done(client: Client, what: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post something that makes a job and return its result."""
    job = client.call("POST", f"/v1/models/gpt2/{what}", body, Prefer="wait=60")
    return client.finish(job, lambda _job: None)


def engine(client: Client, number: int) -> dict[str, Any]:
    return client.call("GET", f"/v1/models/gpt2/engines/{number}")


@pytest.fixture(scope="module")
def built(client: Client) -> int:
    return int(done(client, "builds", BUILD)["engine"])


def test_the_default_is_tensorrt_and_its_engine_says_where_it_works(client: Client, built: int) -> None:
    found = engine(client, built)
    (gpu,) = [one for one in client.call("GET", "/v1/workers")["data"] if one["device"]["kind"] == "cuda"]
    assert found["backend"] == "tensorrt"
    assert found["device"] == gpu["device"]["name"]
    assert found["platform"] == f"{gpu['backends']['tensorrt']['version']}/{found['device']}"
    assert found["verification"]["ok"]
    assert found["facts"]["fixed_parameters"] == []


def test_a_lazy_engine_has_its_plan_once_it_is_downloaded(client: Client, built: int) -> None:
    result = done(client, "refits", {"engine": built, "weights": 2, "materialise": "lazy"})
    assert not result["materialised"]
    number = result["engine"]
    assert engine(client, number)["plan_digest"] is None

    answer = client.http.get(f"/v1/models/gpt2/engines/{number}/plan")

    assert answer.status_code == 200
    digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    assert engine(client, number)["plan_digest"] == digest
    assert answer.headers["etag"] == f'"{digest}"'
    assert done(client, f"engines/{number}/verify", {"against": "reference"})["ok"]


def test_a_lazy_engine_has_its_plan_soon_after_an_alias_names_it(client: Client, built: int) -> None:
    number = done(client, "refits", {"engine": built, "weights": 3, "materialise": "lazy"})["engine"]
    client.call("PUT", "/v1/models/gpt2/aliases/production", {"engine": number})
    (job,) = [
        one
        for one in client.call("GET", "/v1/jobs?kind=materialise")["data"]
        if one["result"] is None or one["result"]["engine"] == number
    ]
    assert client.finish(job, lambda _job: None)["engine"] == number
    assert engine(client, number)["materialised"]


def test_what_this_release_lacks_is_refused_at_once_with_the_reason(client: Client) -> None:
    lacks = next(
        one["backends"]["tensorrt"]["capabilities"]["lacks"]
        for one in client.call("GET", "/v1/workers")["data"]
        if "tensorrt" in one["backends"]
    )
    assert lacks
    for option, reason in lacks.items():
        name, _, value = option.partition("=")
        body = BUILD | {"backend": "tensorrt", "options": {name: value or ["a.*"]}}
        with pytest.raises(ServiceProblem, match="422") as problem:
            client.post("builds", body)
        assert reason[:40] in str(problem.value)


def test_a_benchmark_tells_what_refit_support_costs(client: Client, built: int) -> None:
    result = done(client, "benchmarks", {"engine": built, "iterations": 20, "against": "not_refittable"})
    assert result["ratio"] > 0
    assert result["layers"]
    assert b"inspector" in client.download(result["report"])


def test_a_build_is_canceled_while_it_compiles(client: Client) -> None:
    body = BUILD | {"options": {"optimization_level": 5}, "weights": 2}
    job = client.post("builds", body)
    for state in client.follow(job):
        if state["progress"]["phase"] == "compile":
            client.call("POST", f"/v1/jobs/{job['id']}/cancel")
    assert state["state"] == "canceled"
    assert done(client, "builds", BUILD | {"reuse": False})["method"] == "build"  # the worker goes on
