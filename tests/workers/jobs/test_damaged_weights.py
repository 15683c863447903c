"""Weights that were damaged while they lay in the store: no engine is made of them, and an upload replaces them."""

import os

import numpy as np
import pytest
from safetensors.numpy import save

from app.artifacts.local import LocalStore
from app.settings import Settings
from tests.workers.networks import Network
from tests.workers.service import Array, Service, computed


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)


def flip_a_bit(settings: Settings, digest: str) -> None:
    """Flip one bit of a file's last byte, and give the file the times that it had."""
    path = LocalStore(settings.artifacts_dir).local_path(digest)
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("verify", ["reference", "none"])
@pytest.mark.parametrize("used_before", [False, True])
def test_a_refit_from_damaged_weights_fails_until_they_are_uploaded_again(
    net: Service, settings: Settings, network: Network, x: Array, verify: str, *, used_before: bool
) -> None:
    values = network.weights(seed=2)
    content = save({name: np.ascontiguousarray(value) for name, value in values.items()})
    digest = net.upload(content)
    refit = {"engine": 1, "weights": net.post("/weights", {"files": [digest]})["version"], "reuse": False}
    refit |= {"verify": {"against": verify}}
    if used_before:
        net.result("/refits", refit)
    count = len(net.engines())

    flip_a_bit(settings, digest)
    job = net.do("/refits", refit)
    assert (job["state"], job["error"]["code"]) == ("failed", "weights_damaged")
    assert digest in job["error"]["detail"]
    assert any(f"tensor {name} " in job["error"]["detail"] for name in values)
    assert len(net.engines()) == count
    assert net.do("/refits", refit)["error"]["code"] == "weights_damaged"

    net.upload(content)
    result = net.result("/refits", refit)
    np.testing.assert_allclose(net.run(result["engine"], x), computed(values, x), rtol=1e-5, atol=1e-6)


def test_damaged_weights_are_noticed_by_a_build_and_by_the_run_that_loads_an_engine(
    net: Service, settings: Settings, x: Array
) -> None:
    blob = net.client.get("/v1/models/net/weights/1/tensors").json()["data"][0]["blob"]
    flip_a_bit(settings, blob)
    build = net.do("/builds", {"definition": 1, "weights": 1, "reuse": False})
    assert build["error"]["code"] == "weights_damaged"
    run = net.do("/runs", {"engine": 1, "inputs": net.upload(save({"x": x}))})
    assert run["error"]["code"] == "weights_damaged"
