"""The calls that a build and a refit come down to, by hand in one script: what the service is measured against.

python -m benchmarks.tensorrt_raw build ONNX PLAN          compile a graph whose weights are external
python -m benchmarks.tensorrt_raw refit PLAN FIRST SECOND  refit a plan with two checkpoints in turn
python -m benchmarks.tensorrt_raw build-heard|refit-heard ...  the same with a logger in Python that hears everything

Prints one JSON object; times are seconds, memory is bytes.
"""

import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorrt as trt

from benchmarks.service import memory_bytes

DTYPES = {"F16": np.float16, "F32": np.float32}
WITHOUT = {"CUBLAS", "CUBLAS_LT", "CUDNN"}  # as the service: nothing but TensorRT's own kernels
SHAPES = ((1, 1), (1, 64), (4, 128))
ROUNDS = 5
T = TypeVar("T")


class Listener(trt.ILogger):
    """A logger in Python: TensorRT calls it for each verbose line as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:  # noqa: ARG002 - TensorRT's signature
        """Count a line and forget it."""
        self.lines += 1


LOGGER = Listener() if sys.argv[1].endswith("-heard") else trt.Logger(trt.Logger.ERROR)


def build(onnx: str, plan: str) -> dict[str, Any]:
    """Make the builder, parse, compile with refit support and write the plan.

    The first builder of a process loads TensorRT's kernels, for which a process that has compiled before does not wait.
    """
    runtime = trt.Runtime(LOGGER)  # which an engine host has as well before it is asked for anything
    idle = memory_bytes("self", "VmRSS")
    making, builder = timed(lambda: trt.Builder(LOGGER))
    builder.max_threads = os.cpu_count() or 1
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, LOGGER)
    parsing, parsed = timed(lambda: parser.parse_from_file(onnx))
    if not parsed:
        raise SystemExit(f"{onnx} is refused: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_flag(trt.BuilderFlag.FP16)
    config.clear_flag(trt.BuilderFlag.TF32)
    sources = [source for name, source in trt.TacticSource.__members__.items() if name not in WITHOUT]
    config.set_tactic_sources(sum(1 << int(source) for source in sources))
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        profile.set_shape(network.get_input(index).name, *(trt.Dims(list(shape)) for shape in SHAPES))
    config.add_optimization_profile(profile)
    building, engine = timed(lambda: builder.build_serialized_network(network, config))
    writing, _ = timed(lambda: write(plan, engine))
    del runtime
    return {
        "builder_s": making,
        "parse_s": parsing,
        "build_s": building,
        "write_s": writing,
        "lines_heard": LOGGER.lines if isinstance(LOGGER, Listener) else 0,
        "idle_bytes": idle,
        "peak_bytes": memory_bytes("self", "VmHWM"),
    }


def refit(plan: str, *checkpoints: str) -> dict[str, Any]:
    """Deserialize, then set every weight, refit, serialize and write, over and over; then one weight alone.

    At last all of them once more while the engine has an execution context, as one has that runs.
    """
    runtime = trt.Runtime(LOGGER)
    with Path(plan).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        loading, engine = timed(lambda: runtime.deserialize_cuda_engine(mapped))
    names = trt.Refitter(engine, LOGGER).get_all_weights()
    weights = [turned(tensors(Path(path)), names) for path in checkpoints]
    rounds = [one_round(engine, weights[number % 2], f"{plan}.refitted") for number in range(ROUNDS)]
    largest = max(weights[0], key=lambda name: weights[0][name].nbytes if weights[0][name].nbytes < 10e6 else 0)
    single = [timed(partial(put, engine, {largest: weights[n % 2][largest]}))[0] for n in range(ROUNDS * 4)]
    Path(f"{plan}.refitted").unlink()
    peak = memory_bytes("self", "VmHWM")
    first, context = timed(engine.create_execution_context)
    del context
    again, context = timed(engine.create_execution_context)
    beside = [timed(partial(put, engine, weights[number % 2]))[0] for number in range(ROUNDS)]
    del context
    return {
        "deserialize_s": loading,
        "refit_s": statistics.median(taken["refit_s"] for taken in rounds),
        "serialize_s": statistics.median(taken["serialize_s"] for taken in rounds),
        "write_s": statistics.median(taken["write_s"] for taken in rounds),
        "all_s": statistics.median(sum(taken.values()) for taken in rounds),
        "weights": len(weights[0]),
        "one_tensor_s": statistics.median(single),
        "one_tensor_bytes": weights[0][largest].nbytes,
        "first_context_s": first,
        "context_s": again,
        "refit_beside_context_s": statistics.median(beside),
        "peak_bytes": peak,
    }


def one_round(engine: Any, weights: dict[str, Any], path: str) -> dict[str, float]:  # noqa: ANN401 - trt.ICudaEngine
    """Refit with all weights, serialize and write a file that is not there yet."""
    Path(path).unlink(missing_ok=True)
    refitting, _ = timed(lambda: put(engine, weights))
    serializing, plan = timed(engine.serialize)
    writing, _ = timed(lambda: write(path, plan))
    return {"refit_s": refitting, "serialize_s": serializing, "write_s": writing}


def put(engine: Any, weights: dict[str, Any]) -> None:  # noqa: ANN401 - trt.ICudaEngine
    """Set the weights and refit."""
    refitter = trt.Refitter(engine, LOGGER)
    # TensorRT 8 keeps the interpreter's lock while it refits: a thread of it that speaks to a listener would hang.
    refitter.max_threads = 1 if isinstance(LOGGER, Listener) else os.cpu_count() or 1
    for name, array in weights.items():
        if not refitter.set_named_weights(name, trt.Weights(array)):
            raise SystemExit(f"the engine does not take {name}")
    if refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        raise SystemExit("the engine could not be refitted")


def tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file as views of the mapped file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    views = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        count = (end - begin) // dtype.itemsize
        views[name] = np.frombuffer(mapped, dtype, count, 8 + length + begin).reshape(entry["shape"])
    return views


def turned(weights: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the weights as the engine names them; those it has transposed are transposed ahead of all measuring."""
    missing = [name for name in weights if name not in names]
    return {name: weights[name] for name in weights if name in names} | {
        f"{name}.transposed": np.ascontiguousarray(weights[name].T) for name in missing
    }


def write(path: str, data: Any) -> None:  # noqa: ANN401 - trt.IHostMemory
    """Write a plan so that it survives the machine, as an artifact does."""
    with Path(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds an action takes, and what it returns."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    tasks: dict[str, Callable[..., dict[str, Any]]] = {"build": build, "refit": refit}
    print(json.dumps(tasks[sys.argv[1].removesuffix("-heard")](*sys.argv[2:])))
