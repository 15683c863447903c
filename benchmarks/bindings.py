"""Checks and proposals for a model of a thousand tensors, refits by other rules, and what a transpose costs."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from app.bindings.report import ParameterBinding
from app.bindings.transforms import Transpose
from benchmarks.service import Service
from examples.client import Client
from workers.channel.messages import ParameterSource, TensorFile
from workers.engine_host.tensors import ParameterFiles

LAYERS = 500  # of one matrix and one bias each
WIDTH = 48
ROUNDS = 21
MATRICES = 8
ROWS, COLUMNS = 2048, 4096  # of those that are transposed: 32 MiB each
Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def measure(service: Service, scratch: Path) -> dict[str, Any]:
    """Time the calls over HTTP, and refits by the old rules and by others in turns, so that noise hits both alike."""
    client = Client(service.url, "named")
    client.call("POST", "/v1/models", {"name": "named"})
    first = _network(0)
    graph = scratch / "named.onnx"
    onnx.save(_graph(first), graph)
    made = client.post("definitions", {"onnx": client.upload(graph)})
    weights = _upload(client, scratch, first)
    body = {"definition": made["version"], "weights": weights}
    proposed = client.post("bindings/propose", body)
    if not proposed["ok"]:
        raise RuntimeError(f"unclear: {proposed['unclear'][:1]}, {proposed['report']['problems'][:1]}")
    whole = body | {"rules": proposed["rules"]}
    job = client.post("builds", whole)
    engine = client.finish(job, lambda _job: None)["engine"]
    return {
        "tensors": len(first),
        "rules": len(proposed["rules"]),
        "propose_ms": _milliseconds(lambda: client.post("bindings/propose", body)),
        "check_ms": _milliseconds(lambda: client.post("bindings/check", whole)),
        "check_unbound_ms": _milliseconds(lambda: client.post("bindings/check", body)),
        **_refits(client, scratch, engine, proposed["rules"]),
        **_transposes(scratch),
    }


def _refits(client: Client, scratch: Path, engine: int, rules: list[Any]) -> dict[str, float]:
    """Refit to the same values, once under the names of the engine's own weights and once under others."""
    trained = _network(1)
    as_before, renamed = _upload(client, scratch, trained), _upload(client, scratch, trained, "module.")
    others = [rule | {"tensors": [f"module.{name}" for name in rule["tensors"]]} for rule in rules]
    by_old, by_other = [], []
    for _ in range(ROUNDS):
        by_old.append(_job_seconds(client, {"engine": engine, "weights": as_before}))
        by_other.append(_job_seconds(client, {"engine": engine, "weights": renamed, "rules": others}))
    old, other = statistics.median(by_old), statistics.median(by_other)
    return {
        "refit_s": round(old, 4),
        "refit_other_rules_s": round(other, 4),
        "other_rules_over_old": round(other / old, 3),
    }


def _job_seconds(client: Client, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    job = client.call("POST", "/v1/models/named/refits", body | {"reuse": False}, Prefer="wait=60")
    if job["state"] != "succeeded":
        raise RuntimeError(f"refit: {job['error']}")
    return time.perf_counter() - started


def _transposes(scratch: Path) -> dict[str, float]:
    """Bind matrices of which each is transposed, and write the same bytes as they are, in turns."""
    path = scratch / "matrices.bin"
    path.write_bytes(np.random.default_rng(0).bytes(MATRICES * ROWS * COLUMNS * 4))
    bound, copied = [], []
    for _ in range(5):
        started = time.perf_counter()
        values = ParameterFiles(scratch / "made").locate([_source(path, number) for number in range(MATRICES)])
        bound.append(time.perf_counter() - started)
        del values
        started = time.perf_counter()
        _copy(path, scratch / "copy.bin")
        copied.append(time.perf_counter() - started)
    ratio = statistics.median(bound) / statistics.median(copied)
    return {"bind_transposed_s": round(statistics.median(bound), 3), "transpose_over_copy": round(ratio, 2)}


def _source(path: Path, number: int) -> ParameterSource:
    nbytes = ROWS * COLUMNS * 4
    stored = TensorFile(str(path), number * nbytes, nbytes, "F32", (ROWS, COLUMNS), str(number))
    binding = ParameterBinding(f"w{number}", "F32", (COLUMNS, ROWS), (f"w{number}",), (Transpose((1, 0)),))
    return ParameterSource(binding, (stored,))


def _copy(path: Path, target: Path) -> None:
    mapped = np.memmap(path, np.uint8, "r")
    with target.open("wb") as file:
        for start in range(0, mapped.size, ROWS * COLUMNS * 4):
            file.write(mapped[start : start + ROWS * COLUMNS * 4].data)
    target.unlink()


def _upload(client: Client, scratch: Path, weights: Arrays, prefix: str = "") -> int:
    """Upload weights as a PyTorch module saves them; return the version's number."""
    path = scratch / "state_dict.safetensors"
    save_file({prefix + _saved(name): _turned(name, array) for name, array in weights.items()}, path)
    version: int = client.post("weights", {"files": [client.upload(path)]})["version"]
    return version


def _network(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for layer in range(LAYERS):
        made[f"onnx::MatMul_{layer}"] = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        made[f"layer.{layer}.bias"] = random.standard_normal(WIDTH).astype(np.float32)
    return made


def _saved(name: str) -> str:
    """Return what a PyTorch module of a wrapped model calls it."""
    return f"model.{name.replace('onnx::MatMul_', 'layer.')}.weight" if "MatMul" in name else f"model.{name}"


def _turned(name: str, array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    return np.ascontiguousarray(array.T) if "MatMul" in name else array


def _graph(weights: Arrays) -> onnx.ModelProto:
    nodes, last = [], "x"
    for layer in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [last, f"onnx::MatMul_{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Add", [f"m{layer}", f"layer.{layer}.bias"], [f"a{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"a{layer}"], [f"t{layer}"]))
        last = f"t{layer}"
    value = helper.make_tensor_value_info
    shape: list[str | int | None] = ["batch", WIDTH]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs, outputs = [value("x", TensorProto.FLOAT, shape)], [value(last, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "named", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _milliseconds(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds) * 1000, 1)
