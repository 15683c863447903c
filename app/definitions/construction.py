"""Makes a definition's files in a scratch directory and describes them; runs in the child."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from app.definitions.canonical_graph import canonical_bytes
from app.definitions.constants import to_json, warnings
from app.definitions.external_data import is_external, ranges_of
from app.definitions.family import load_family
from app.definitions.interface import read_interface
from app.definitions.onnx_file import load_model, opset_of
from app.definitions.opset_conversion import convert_opset
from app.definitions.tensor_data import DTYPE_NAMES, byte_count
from app.definitions.weight_split import split_weights
from app.definitions.weights_file import write_weights
from app.weights.dtypes import DTYPES


def construct(task: Mapping[str, Any]) -> dict[str, Any]:
    """Write `task["graph"]` and, if there are any, `task["weights"]`; return what `sandbox` reads; raises Rejected."""
    graph, weights = Path(task["graph"]), Path(task["weights"])
    if "file" in task:
        files = {location: Path(path) for location, path in task.get("external_data", {}).items()}
        return _from_file(Path(task["file"]), files, task.get("opset"), graph, weights)
    built = load_family(task["family"]).build(task["config"], task["precision"])
    source = {"family": task["family"], "precision": task["precision"], "config": dict(built.config)}
    made = _finish(built.model, source, built.rules, graph)
    # Token ids below 0 are a mistake of the client's, though ONNX has Gather count them from the end.
    made["inputs"] = [spec | {"low": 0} if spec["high"] is not None else spec for spec in made["inputs"]]
    return made | {"constants": to_json(()), "external": []}


def _from_file(file: Path, files: Mapping[str, Path], opset: int | None, graph: Path, weights: Path) -> dict[str, Any]:
    model = load_model(file, files)
    split = split_weights(model, files)
    source: dict[str, Any] = {"producer": f"{model.producer_name[:100]} {model.producer_version[:100]}".strip()}
    definition = split.model
    if opset is not None and opset != (uploaded := opset_of(model)):
        source["converted_from"] = uploaded
        definition = convert_opset(definition, opset)
    made = _finish(definition, source, [], graph)
    inside = {name: tensor for name, tensor in split.weights.items() if not is_external(tensor)}
    if inside:
        write_weights(weights, inside)
    constants = to_json(split.constants, split.digests)
    made["source"]["warnings"] += warnings(constants, _float_bytes(split.weights.values()))
    return made | {"constants": constants, "external": [external.to_json() for external in ranges_of(split.weights)]}


def _float_bytes(tensors: Iterable[TensorProto]) -> int:
    return sum(byte_count(tensor) for tensor in tensors if DTYPES[DTYPE_NAMES[tensor.data_type]].kind == "float")


def _finish(
    model: ModelProto, source: Mapping[str, Any], rules: Sequence[Mapping[str, Any]], graph: Path
) -> dict[str, Any]:
    interface = read_interface(model)
    graph.write_bytes(canonical_bytes(model))
    return {
        "source": {**source, "opset": opset_of(model), "warnings": list(interface.warnings)},
        "inputs": [spec.to_json() for spec in interface.inputs],
        "outputs": [spec.to_json() for spec in interface.outputs],
        "parameters": [parameter.to_json() for parameter in interface.parameters],
        "rules": list(rules),
    }
