"""Makes a definition's files in a scratch directory and describes them; runs in the child."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from app.definitions.canonical_graph import canonical_bytes
from app.definitions.family import load_family
from app.definitions.interface import read_interface
from app.definitions.onnx_file import load_model, opset_of
from app.definitions.weight_split import split_weights
from app.definitions.weights_file import write_weights


def construct(task: Mapping[str, Any]) -> dict[str, Any]:
    """Write `task["graph"]` and, if there are any, `task["weights"]`; return what `sandbox` reads. Rejected."""
    graph, weights = Path(task["graph"]), Path(task["weights"])
    if "file" in task:
        return _from_file(Path(task["file"]), graph, weights)
    built = load_family(task["family"]).build(task["config"], task["precision"])
    source = {"family": task["family"], "precision": task["precision"], "config": dict(built.config)}
    return _finish(built.model, source, built.rules, graph)


def _from_file(file: Path, graph: Path, weights: Path) -> dict[str, Any]:
    model = load_model(file)
    split = split_weights(model)
    producer = f"{model.producer_name[:100]} {model.producer_version[:100]}".strip()
    made = _finish(split.model, {"producer": producer}, [], graph)
    if split.weights:
        write_weights(weights, split.weights)
    return made


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
