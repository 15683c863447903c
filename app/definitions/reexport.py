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
    try:
        found = _by_place(definition, model, split.weights, files)
    except Rejected as rejected:
        found = _with_scalars_by_place(definition, model, split.weights, files, rejected)
    return found | _by_name(definition, found.keys(), split.weights)


def _by_place(
    definition: ModelProto, model: ModelProto, weights: Mapping[str, TensorProto], files: Mapping[str, Path]
) -> dict[str, TensorProto]:
    names = PlaceMatching(expression_of(definition), expression_of(model), _digests(weights, files))
    return {parameter: weights[name] for parameter, name in names.weights_by_parameter().items()}


def _with_scalars_by_place(
    definition: ModelProto,
    model: ModelProto,
    weights: Mapping[str, TensorProto],
    files: Mapping[str, Path],
    rejected: Rejected,
) -> dict[str, TensorProto]:
    """Let the definition say which scalars are learnt, which names tell else; raise `rejected` if that is no help."""
    mine = expression_of(definition, scalars_are_parameters=True)
    other = expression_of(model, scalars_are_parameters=True)
    leaves = {**weights, **other.scalars}
    try:
        names = PlaceMatching(mine, other, _digests(leaves, files)).weights_by_parameter()
    except Rejected:
        raise rejected from None
    found = {parameter: leaves[name] for parameter, name in names.items()}
    for name, scalar in mine.scalars.items():
        if name in found and _values(found.pop(name), files) != tensor_bytes(scalar):
            raise rejected
    return found


def _in_opset(model: ModelProto, opset: int) -> ModelProto:
    try:
        return convert_opset(model, opset)
    except Rejected as rejected:
        raise graph_differs(
            [f"the definition has opset {opset}, the file has {opset_of(model)} and cannot be converted"]
        ) from rejected


def _by_name(
    definition: ModelProto, placed: Collection[str], weights: Mapping[str, TensorProto]
) -> dict[str, TensorProto]:
    """Return, by name alone, those parameters that no output is computed of; Rejected if there are others."""
    rest = [one for one in definition.graph.initializer if is_external(one) and one.name not in placed]
    missing = [one.name for one in rest if one.name not in weights or not _is_alike(one, weights[one.name])]
    if missing:
        raise graph_differs(
            [f"no output is computed of the parameters {shown(missing)}, and the file has no such weights"]
        )
    return {one.name: weights[one.name] for one in rest}


def _is_alike(one: TensorProto, other: TensorProto) -> bool:
    return one.data_type == other.data_type and one.dims == other.dims


def _digests(weights: Mapping[str, TensorProto], files: Mapping[str, Path]) -> Callable[[str], str]:
    digests: dict[str, str] = {}

    def digest_of(name: str) -> str:
        if name not in digests:
            digests[name] = blake2b(_values(weights[name], files)).hexdigest()
        return digests[name]

    return digest_of


def _values(tensor: TensorProto, files: Mapping[str, Path]) -> bytes:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return tensor_bytes(embedded(copy, files))
