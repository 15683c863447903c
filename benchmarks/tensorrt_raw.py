"""The calls that a build and a refit come down to, by hand in one script: what the service is measured against.

python -m benchmarks.tensorrt_raw build ONNX PLAN          compile a graph whose weights are external
python -m benchmarks.tensorrt_raw refit PLAN FIRST SECOND  refit a plan with two checkpoints, as told line by line

"build" prints one JSON object. "refit" prints one for each line of standard input: "load" deserializes the plan, "all"
refits all weights and writes the new plan, "mapped" and "locked" refit all weights from the mapped file and from
page-locked memory and write nothing, "one" refits a single weight. Times are seconds, memory is bytes.
"""

import ctypes
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorrt as trt

from benchmarks.service import memory_bytes

DTYPES = {"F16": np.float16, "F32": np.float32}
WITHOUT = {"CUBLAS", "CUBLAS_LT", "CUDNN"}  # as in the service: nothing but TensorRT's own kernels
SHAPES = ((1, 1), (1, 64), (4, 128))
T = TypeVar("T")


LOGGER = trt.Logger(trt.Logger.ERROR)


def build(onnx: str, plan: str) -> dict[str, Any]:
    """Make the builder, parse, compile with refit support and write the plan.

    The first builder of a process loads TensorRT's kernels. A process that has compiled before does not wait for them.
    """
    runtime = trt.Runtime(LOGGER)  # an engine host has one, too, before its first request
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
    Path(plan).unlink(missing_ok=True)  # left by an earlier run; freeing it must not count as writing
    writing, _ = timed(lambda: write(Path(plan), engine))
    del runtime
    return {
        "builder_s": making,
        "parse_s": parsing,
        "build_s": building,
        "write_s": writing,
        "idle_bytes": idle,
        "peak_bytes": memory_bytes("self", "VmHWM"),
    }


class Refits:
    """An engine that is refitted with two checkpoints in turn; `close` removes the plans it wrote.

    Each plan is a new file, as in the service. A file that is overwritten has its memory and disk space already.
    """

    _engine: Any = None  # trt.ICudaEngine

    def __init__(self, plan: str, *checkpoints: str) -> None:
        self._runtime = trt.Runtime(LOGGER)
        self._plan = Path(plan)
        self._written: list[Path] = []
        self._locked: dict[str, Any] = {}
        self.load()
        names = trt.Refitter(self._engine, LOGGER).get_all_weights()
        first, second = (turned(tensors(Path(path)), names) for path in checkpoints)
        self._versions = cycle((second, first))
        self._largest = max(first, key=lambda name: first[name].nbytes if first[name].nbytes < 10e6 else 0)

    def load(self) -> dict[str, float]:
        """Deserialize the plan."""
        self._engine = None
        with self._plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            loading, self._engine = timed(lambda: self._runtime.deserialize_cuda_engine(mapped))
        return {"deserialize_s": loading}

    def all(self) -> dict[str, float]:
        """Set all weights, refit, serialize, and write the plan to a new file."""
        weights = next(self._versions)
        self._written.append(self._plan.with_suffix(f".{len(self._written)}"))
        refitting, _ = timed(lambda: put(self._engine, weights))
        serializing, plan = timed(self._engine.serialize)
        writing, _ = timed(lambda: write(self._written[-1], plan))
        taken = {"refit_s": refitting, "serialize_s": serializing, "write_s": writing}
        return taken | {"all_s": sum(taken.values()), "weights": len(weights)}

    def mapped(self) -> dict[str, float]:
        """Set all weights as they lie in the mapped file, and refit."""
        weights = next(self._versions)
        return {"refit_s": timed(lambda: put(self._engine, weights))[0]}

    def locked(self) -> dict[str, float]:
        """Copy all weights into page-locked memory, unmeasured; then set them and refit."""
        weights = next(self._versions)
        if not self._locked:
            self._locked = {name: page_locked(array) for name, array in weights.items()}
        for name, array in weights.items():
            np.copyto(self._locked[name], array)
        return {"refit_s": timed(lambda: put(self._engine, self._locked))[0]}

    def one(self) -> dict[str, float]:
        """Set a single weight and refit."""
        array = next(self._versions)[self._largest]
        return {"refit_s": timed(lambda: put(self._engine, {self._largest: array}))[0], "bytes": array.nbytes}

    def close(self) -> None:
        """Remove the plans that were written."""
        for path in self._written:
            path.unlink()


def refit(*paths: str) -> None:
    """Do what each line of standard input says, and print its figures."""
    refits = Refits(*paths)
    for line in sys.stdin:
        figures = getattr(refits, line.strip())()
        print(json.dumps(figures | {"peak_bytes": memory_bytes("self", "VmHWM")}), flush=True)
    refits.close()


def put(engine: Any, weights: dict[str, Any]) -> None:  # noqa: ANN401 - trt.ICudaEngine
    """Set the weights and refit."""
    refitter = trt.Refitter(engine, LOGGER)
    refitter.max_threads = os.cpu_count() or 1
    for name, array in weights.items():
        if not refitter.set_named_weights(name, trt.Weights(array)):
            raise SystemExit(f"the engine does not take {name}")
    if refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        raise SystemExit("the engine could not be refitted")


def page_locked(like: Any) -> Any:  # noqa: ANN401 - an array
    """Return an array of the same dtype and shape in page-locked memory, which is never given back."""
    runtime = import_module("cuda.bindings.runtime")
    status, pointer = runtime.cudaHostAlloc(like.nbytes, runtime.cudaHostAllocDefault)
    if int(status):
        raise SystemExit(f"no page-locked memory: {status}")
    memory = (ctypes.c_uint8 * like.nbytes).from_address(int(pointer))
    return np.frombuffer(memory, like.dtype).reshape(like.shape)


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
    """Return the weights by the names that the engine has for them.

    Weights that the engine has transposed are transposed here, ahead of all measuring.
    """
    missing = [name for name in weights if name not in names]
    return {name: weights[name] for name in weights if name in names} | {
        f"{name}.transposed": np.ascontiguousarray(weights[name].T) for name in missing
    }


def write(path: Path, data: Any) -> None:  # noqa: ANN401 - trt.IHostMemory
    """Write a plan so that it survives a power cut, as an artifact does."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that an action takes, and its result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    if sys.argv[1] == "refit":
        refit(*sys.argv[2:])
    else:
        print(json.dumps(build(*sys.argv[2:])))
