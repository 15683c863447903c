"""Brings the weights of another export under the names of a definition's parameters; runs in the child."""

from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from app.definitions.expression import expression_of
from app.definitions.external_data import embedded, is_external, ranges_of
from app.definitions.graph_differences import graph_differs
from app.definitions.interface import read_interface
from app.definitions.onnx_file import load_model, opset_of
from app.definitions.opset_conversion import convert_opset
from app.definitions.place_matching import PlaceMatching, shown
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import tensor_bytes
from app.definitions.weight_split import SplitModel, split_weights
from app.definitions.weights_file import write_weights


def match_export(task: Mapping[str, Any]) -> dict[str, Any]:
    """Match `task["file"]` to the graph `task["definition"]`; write `task["weights"]` if it has weights inside.

    Returns what `sandbox` reads. Raises Rejected.
    """
    files = {location: Path(path) for location, path in task["external_data"].items()}
    definition = ModelProto.FromString(Path(task["definition"]).read_bytes())
    split = split_weights(load_model(Path(task["file"]), files), files)
    weights = _matched(definition, split, files)
    inside = {name: tensor for name, tensor in weights.items() if not is_external(tensor)}
    if inside:
        write_weights(Path(task["weights"]), inside)
    return {"external": [one.to_json() for one in ranges_of(weights)]}


def _matched(definition: ModelProto, split: SplitModel, files: Mapping[str, Path]) -> dict[str, TensorProto]:
    """Return the weights by the names of the definition's parameters."""
    model = _in_opset(split.model, opset_of(definition))
    read_interface(model)
    digest_of = _digests(split.weights, files)
    names = PlaceMatching(expression_of(definition), expression_of(model), digest_of).weights_by_parameter()
    names |= _unplaced(definition, names.keys(), split.weights)
    return {parameter: split.weights[name] for parameter, name in names.items()}


def _in_opset(model: ModelProto, opset: int) -> ModelProto:
    try:
        return convert_opset(model, opset)
    except Rejected as rejected:
        raise graph_differs(
            [f"the definition has opset {opset}, the file has {opset_of(model)} and cannot be converted"]
        ) from rejected


def _unplaced(definition: ModelProto, placed: Collection[str], weights: Mapping[str, TensorProto]) -> dict[str, str]:
    """Return, by name alone, those parameters that no output is computed of; Rejected if there are others."""
    rest = [one for one in definition.graph.initializer if is_external(one) and one.name not in placed]
    missing = [one.name for one in rest if one.name not in weights or not _is_alike(one, weights[one.name])]
    if missing:
        raise graph_differs(
            [f"no output is computed of the parameters {shown(missing)}, and the file has no such weights"]
        )
    return {one.name: one.name for one in rest}


def _is_alike(one: TensorProto, other: TensorProto) -> bool:
    return one.data_type == other.data_type and one.dims == other.dims


def _digests(weights: Mapping[str, TensorProto], files: Mapping[str, Path]) -> Callable[[str], str]:
    digests: dict[str, str] = {}

    def digest_of(name: str) -> str:
        if name not in digests:
            copy = TensorProto()
            copy.CopyFrom(weights[name])
            digests[name] = blake2b(tensor_bytes(embedded(copy, files))).hexdigest()
        return digests[name]

    return digest_of
