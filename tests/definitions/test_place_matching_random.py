"""Random graphs and random other exports of them: whatever is matched computes what the other export computes."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from app.definitions.expression import expression_of
from app.definitions.place_matching import PlaceMatching
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import tensor_bytes
from app.definitions.weight_split import SplitModel, split_weights

Array = np.ndarray[Any, np.dtype[Any]]
Node = tuple[str, tuple[str, ...], str]
GRAPHS = 1000
COMPUTE = {"MatMul": np.matmul, "Add": np.add, "Mul": np.multiply, "Sub": np.subtract, "Tanh": np.tanh}


def random_graph(chance: random.Random) -> list[Node]:
    nodes: list[Node] = []
    values, weights = ["x"], [f"{number}.weight" for number in range(chance.randint(2, 5))]
    for number in range(chance.randint(3, 10)):
        operator = chance.choice(["MatMul", "MatMul", "MatMul", "Add", "Mul", "Sub"])
        others = weights if operator == "MatMul" or chance.random() < 0.3 else values[-4:]
        nodes.append((operator, (chance.choice(values[-4:]), chance.choice(others)), f"v{number}"))
        values.append(f"v{number}")
    return [*nodes, ("Add", (values[-1], values[-2]), "sum"), ("Tanh", ("sum",), "y")]


def exported_again(chance: random.Random, nodes: Sequence[Node]) -> list[Node]:
    """Rename weights, turn inputs of sums and products around, and sometimes change what a node reads."""
    kept = chance.choice([0, 0.5, 1])
    weights = sorted({name for _, reads, _ in nodes for name in reads if name.endswith(".weight")})
    names = {name: name if chance.random() < kept else f"other{number}" for number, name in enumerate(weights)}
    other: list[Node] = []
    for operator, reads, output in nodes:
        named = tuple(names.get(name, name) for name in reads)
        other.append((operator, named[::-1] if operator in {"Add", "Mul"} and chance.random() < 0.5 else named, output))
    if chance.random() < 0.3:
        place = chance.randrange(len(other))
        operator, reads, output = other[place]
        changed = reads[::-1] if chance.random() < 0.5 else (*reads[:-1], chance.choice([*names.values(), "x"]))
        other[place] = (operator, changed, output)
    return other


def weights_for(nodes: Sequence[Node], seed: int) -> dict[str, Array]:
    values = np.random.default_rng(seed)
    made = {node[2] for node in nodes} | {"x"}
    names = sorted({name for _, reads, _ in nodes for name in reads} - made)
    return {name: values.standard_normal((3, 3)).astype(np.float32) for name in names}


def split(nodes: Sequence[Node], weights: Mapping[str, Array]) -> SplitModel:
    x, y = (make_tensor_value_info(name, 1, [3, 3]) for name in "xy")
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = make_graph([make_node(one, reads, [output]) for one, reads, output in nodes], "random", [x], [y], tensors)
    return split_weights(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8))


def computed(nodes: Sequence[Node], weights: Mapping[str, Array]) -> Array:
    values = {"x": np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3), **weights}
    for operator, reads, output in nodes:
        values[output] = COMPUTE[operator](*(values[name] for name in reads))
    return values["y"]


def test_whatever_is_matched_computes_what_the_other_export_computes() -> None:
    ended: Counter[str] = Counter()
    for seed in range(GRAPHS):
        chance = random.Random(seed)  # noqa: S311 - repeatable, and guards nothing
        nodes = random_graph(chance)
        other_nodes = exported_again(chance, nodes)
        first, weights = weights_for(nodes, seed), weights_for(other_nodes, seed + GRAPHS)
        mine, other = split(nodes, first), split(other_nodes, weights)
        digests = {name: tensor_bytes(one).hex() for name, one in other.weights.items()}
        walk = PlaceMatching(expression_of(mine.model), expression_of(other.model), digests.__getitem__)
        try:
            found = walk.weights_by_parameter()
        except Rejected as rejected:
            ended[rejected.code] += 1
            continue
        matched = first | {parameter: weights[name] for parameter, name in found.items()}
        assert np.array_equal(computed(nodes, matched), computed(other_nodes, weights)), seed
        ended["matched"] += 1
    assert ended["matched"] > GRAPHS / 2
    assert min(ended["graph_differs"], ended["ambiguous_weights"]) > GRAPHS / 100
