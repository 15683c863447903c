"""Tensors that seem to be a parameter, but in another shape: a resized vocabulary, or several parameters in one.

No rule is proposed for them, as which rows are meant, or in which order the parts lie, no shape tells.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from app.bindings.companions import TypedTensor
from app.bindings.fits import TURN
from app.bindings.naming import Namesake
from app.bindings.proposed import EXPORTED, Unclear, is_square, named
from app.bindings.rule_sets import literal
from app.definitions.parameter import Parameter

FUSED: Final = (3, 2)  # query, key and value; gate and up, or key and value

Shape = tuple[int, ...]


def resized(expected: Sequence[int], actual: Sequence[int]) -> dict[str, object] | None:
    """Return the transform that lengthens or shortens the first axis, if two shapes differ in that alone."""
    if len(expected) != len(actual) or not expected or expected[0] == actual[0] or expected[1:] != actual[1:]:
        return None
    if expected[0] > actual[0]:
        return {"op": "pad", "axis": 0, "size": expected[0]}
    return {"op": "slice", "axis": 0, "start": 0, "stop": expected[0]}


def misfits(
    missing: Sequence[Parameter],
    free: Collection[str],
    tensors: Mapping[str, TypedTensor],
    alike: Mapping[str, Sequence[Namesake]],
) -> Iterator[Unclear]:
    """Yield what the names and shapes of `free` tensors say of parameters that nothing is proposed for.

    `alike` are the tensors whose names are a parameter's but for a prefix.
    """
    known: set[str] = set()
    for one in missing:
        found = [match.tensor for match in alike.get(one.name, ()) if match.is_whole and match.tensor in free]
        if len(found) == 1:
            known.update((one.name, found[0]))
            yield Unclear((one.name,), (found[0],), _other_shape(one, found[0], tensors[found[0]].shape))
    yield from _fused(
        [one for one in missing if one.name not in known], [name for name in free if name not in known], tensors
    )


def _fused(
    missing: Sequence[Parameter], free: Collection[str], tensors: Mapping[str, TypedTensor]
) -> Iterator[Unclear]:
    by_shape: dict[tuple[Shape, bool], list[str]] = defaultdict(list)
    for one in missing:
        for way in _ways(one):
            by_shape[way].append(one.name)
    for count in FUSED:
        fused: dict[Shape, list[str]] = defaultdict(list)
        for name in free:
            shape = tensors[name].shape
            if shape and shape[0] % count == 0:
                fused[shape[0] // count, *shape[1:]].append(name)
        for (shape, is_turned), parameters in by_shape.items():
            if len(parameters) >= count and (names := fused.get(shape)):
                detail = _several(count, names, parameters, shape, is_turned=is_turned)
                yield Unclear(tuple(parameters), tuple(names), detail)


def _other_shape(one: Parameter, tensor: str, shape: Shape) -> str:
    what = f"{tensor} is {one.name} by its name, but has shape {list(shape)} instead of {list(one.shape)}."
    transform = resized(one.shape, shape)
    if transform is None:
        return f"{what} Use weights that were trained for this definition, or a rule with transforms that fit."
    rule = {"parameter": literal(one.name), "tensors": [tensor], "transforms": [transform]}
    return f"{what} If it is a vocabulary that was padded, add the rule {json.dumps(rule)}."


def _ways(one: Parameter) -> Iterator[tuple[Shape, bool]]:
    """Yield the shapes that a parameter may have as a part of a tensor, and whether it is transposed there."""
    is_matrix, is_renamed = len(one.shape) == 2, one.name.startswith(EXPORTED)
    if is_matrix and (is_renamed or not is_square(one.shape)):
        yield one.shape[::-1], True
    if one.shape and not (is_matrix and is_renamed):
        yield one.shape, False


def _several(count: int, names: Sequence[str], parameters: Sequence[str], shape: Shape, *, is_turned: bool) -> str:
    transforms: list[object] = [{"op": "split", "axis": 0, "sections": count, "index": 0}]
    turned = is_open = ""
    if is_turned:
        transforms.append(TURN.to_json())
        turned = ", transposed"
    elif is_square(shape):
        is_open = (
            " Nor does it tell whether the parts lie transposed, as those of a Linear do if the exporter has renamed "
            f"the parameter: then put {json.dumps(TURN.to_json())} behind the split."
        )
    return (
        f"{named(names)} has the shape of {count} of {named(parameters)} in one{turned}, as a fused query, key and "
        f'value. If it is that, feed each of them by a rule with "transforms": {json.dumps(transforms)}, counting the '
        f"index up. The order of the parts is that of the code that made the checkpoint, which no shape tells.{is_open}"
    )
