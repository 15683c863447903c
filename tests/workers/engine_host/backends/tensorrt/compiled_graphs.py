"""Definitions with values, and what they and the graphs laid out from them compute in onnxruntime."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from app.weights.dtypes import numpy_dtype
from tests.workers.networks import Network, constructed, tensor_files
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import Layout, slot_value
from workers.engine_host.onnxruntime_session import open_session, run_session, session_options
from workers.engine_host.tensors import Array, MappedFiles, StoredValue, write_tensors

SIZES = {0: 2, 1: 3, 2: 32, 3: 64}  # of dynamic axes


def ocr_networks() -> list[Path]:
    """Published convolutional networks."""
    spec = find_spec("rapidocr_onnxruntime")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else Path()
    return sorted(folder.glob("*.onnx"))


def from_family(config: Mapping[str, Any], precision: str, path: Path) -> Network:
    """The definition of a family, made from the content of a config."""
    return constructed({"family": config["model_type"], "config": config, "precision": precision}, path)


def stored(network: Network, seed: int = 1) -> dict[str, StoredValue]:
    """Every parameter's value in the file beside the definition, which is written where there is none."""
    path = network.path.with_suffix(".safetensors")
    if not path.exists():
        write_tensors(str(path), network.weights(seed))
    return {
        name: StoredValue(one.path, one.offset, one.nbytes, one.dtype, one.shape)
        for name, one in tensor_files(path).items()
    }


def definition_of(network: Network) -> ModelProto:
    return onnx_graph.parse(network.path.read_bytes())


def feeds(network: Network) -> dict[str, Array]:
    random = np.random.default_rng(3)
    arrays = {}
    for one in network.inputs:
        shape = [size if isinstance(size, int) else SIZES[axis] for axis, size in enumerate(one.shape)]
        is_integer = one.dtype.startswith("I")
        array = random.integers(0, one.high or 2, shape) if is_integer else random.standard_normal(shape)
        arrays[one.name] = array.astype(numpy_dtype(one.dtype))
    return arrays


def outputs_of_definition(network: Network, values: Mapping[str, StoredValue]) -> dict[str, Array]:
    mapped = MappedFiles()
    arrays = {name: mapped.view(value) for name, value in values.items()}
    return _run(definition_of(network), feeds(network) | arrays)


def outputs_of_layout(network: Network, layout: Layout, values: Mapping[str, StoredValue]) -> dict[str, Array]:
    mapped = MappedFiles()
    arrays = {slot.name: slot_value(slot, values, mapped) for slot in layout.slots}
    return _run(layout.model, feeds(network) | arrays)


def operators(layout: Layout) -> dict[str, int]:
    return onnx_graph.operators(layout.model.graph)


def _run(model: ModelProto, arrays: dict[str, Any]) -> dict[str, Array]:
    bare = onnx_graph.with_parameters_as_inputs(model)
    options = session_options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return run_session(open_session(onnx_graph.serialize(bare), options), arrays)
