"""Which weight of another export is which parameter, told by a walk over both graphs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_attribute, make_graph, make_node, make_tensor_value_info

from app.definitions.expression import expression_of
from app.definitions.place_matching import PlaceMatching
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import tensor_bytes
from app.definitions.weight_split import split_weights

Array = np.ndarray[Any, np.dtype[Any]]
Make = Callable[..., ModelProto]
Match = Callable[[Sequence[NodeProto], Mapping[str, Array], Sequence[NodeProto], Mapping[str, Array]], dict[str, str]]
RANDOM = np.random.default_rng(3)


def square() -> Array:
    return RANDOM.standard_normal((4, 4)).astype(np.float32)


@pytest.fixture
def match(tiny_model: Make) -> Match:
    """Match the weights of the second graph to those of the first."""

    def match(
        nodes: Sequence[NodeProto],
        weights: Mapping[str, Array],
        other_nodes: Sequence[NodeProto],
        other_weights: Mapping[str, Array],
    ) -> dict[str, str]:
        mine, other = (
            split_weights(tiny_model(graph, [numpy_helper.from_array(array, name) for name, array in values.items()]))
            for graph, values in ((nodes, weights), (other_nodes, other_weights))
        )

        def digest_of(name: str) -> str:
            return tensor_bytes(other.weights[name]).hex()

        walk = PlaceMatching(expression_of(mine.model), expression_of(other.model), digest_of)
        return walk.weights_by_parameter()

    return match


def layers(*names: str) -> list[NodeProto]:
    """MatMul after MatMul: all weights have one shape, so only places tell them apart."""
    values = ["x", *(f"{name}.out" for name in names[:-1]), "y"]
    return [
        make_node("MatMul", [value, name], [following])
        for value, name, following in zip(values, names, values[1:], strict=False)
    ]


def branches(*names: str, join: str = "Add") -> list[NodeProto]:
    """The sum of x times one matrix and x times another."""
    products = [make_node("MatMul", ["x", name], [f"{name}.out"]) for name in names]
    joined = make_node(join, [f"{name}.out" for name in names], ["y"])
    if join == "Concat":
        joined.attribute.append(make_attribute("axis", -1))
    return [*products, joined]


def test_renamed_weights_are_found_at_their_places(match: Match) -> None:
    mine, other = {name: square() for name in ("a", "b", "c")}, {name: square() for name in ("z", "y1", "k")}
    assert match(layers("a", "b", "c"), mine, layers("z", "y1", "k"), other) == {"a": "z", "b": "y1", "c": "k"}


def test_numbered_names_that_another_weight_has_now_mean_nothing(match: Match) -> None:
    mine = {"onnx::MatMul_8": square(), "onnx::MatMul_9": square()}
    found = match(layers(*mine), mine, layers("onnx::MatMul_9", "onnx::MatMul_8"), {name: square() for name in mine})
    assert found == {"onnx::MatMul_8": "onnx::MatMul_9", "onnx::MatMul_9": "onnx::MatMul_8"}


def test_names_that_contradict_their_places_are_refused(match: Match) -> None:
    mine = {"fc1": square(), "fc2": square()}
    with pytest.raises(Rejected, match="at the place of 'fc1' the file has 'fc2'") as raised:
        match(layers("fc1", "fc2"), mine, layers("fc2", "fc1"), {name: square() for name in mine})
    assert raised.value.code == "ambiguous_weights"


@pytest.mark.parametrize("order", [("p", "q"), ("q", "p")])
def test_branches_that_are_computed_alike_are_refused_by_name(match: Match, order: tuple[str, str]) -> None:
    mine, other = {"a": square(), "b": square()}, {"p": square(), "q": square()}
    with pytest.raises(Rejected, match="'p', 'q' of the file is which of the parameters 'a', 'b'") as raised:
        match(branches("a", "b"), mine, branches(*order), other)
    assert raised.value.code == "ambiguous_weights"
    assert [fault.detail for fault in raised.value.errors] == [
        "'p' may be any of 'a', 'b'",
        "'q' may be any of 'a', 'b'",
    ]


@pytest.mark.parametrize(
    ("others", "found"),
    [
        (("a", "b"), {"a": "a", "b": "b"}),
        (("b", "a"), {"a": "a", "b": "b"}),
        (("q", "a"), {"a": "a", "b": "q"}),  # partly renamed
        (("b", "q"), {"a": "q", "b": "b"}),
    ],
)
def test_names_tell_which_branch_is_which(match: Match, others: tuple[str, str], found: Mapping[str, str]) -> None:
    mine, other = {"a": square(), "b": square()}, {name: square() for name in others}
    assert match(branches("a", "b"), mine, branches(*others), other) == found


def test_a_place_that_is_known_tells_which_branch_is_which(match: Match) -> None:
    """One matrix of the sum is applied to the sum again."""

    def tied(first: str, second: str, again: str) -> list[NodeProto]:
        nodes = branches(first, second)
        nodes[-1].output[0] = "sum"
        return [*nodes, make_node("MatMul", ["sum", again], ["y"])]

    mine, other = {"a": square(), "b": square()}, {"p": square(), "q": square()}
    assert match(tied("a", "b", "a"), mine, tied("q", "p", "p"), other) == {"a": "p", "b": "q"}


def test_branches_of_equal_values_may_be_either(match: Match) -> None:
    same = square()
    found = match(branches("a", "b"), {"a": square(), "b": square()}, branches("p", "q"), {"p": same, "q": same})
    assert sorted(found.values()) == ["p", "q"]


def test_the_order_of_what_is_concatenated_is_a_place(match: Match) -> None:
    mine, other = {"a": square(), "b": square()}, {"p": square(), "q": square()}
    nodes = branches("a", "b", join="Concat"), branches("q", "p", join="Concat")
    assert match(nodes[0], mine, nodes[1], other) == {"a": "q", "b": "p"}


def test_names_that_contradict_the_order_of_what_is_concatenated_are_refused(match: Match) -> None:
    mine, other = {"a": square(), "b": square()}, {"a": square(), "b": square()}
    with pytest.raises(Rejected, match="at the place of 'a' the file has 'b'"):
        match(branches("a", "b", join="Concat"), mine, branches("b", "a", join="Concat"), other)


def test_the_order_of_nodes_and_of_the_inputs_of_a_sum_means_nothing(match: Match) -> None:
    def linear(w: str, b: str, *, is_turned: bool) -> list[NodeProto]:
        inputs = ["m", b]
        return [make_node("MatMul", ["x", w], ["m"]), make_node("Add", inputs[::-1] if is_turned else inputs, ["y"])]

    mine, other = {"w": square(), "b": square()[0]}, {"v": square(), "c": square()[0]}
    nodes = linear("w", "b", is_turned=False), linear("v", "c", is_turned=True)
    assert match(nodes[0], mine, nodes[1], other) == {"w": "v", "b": "c"}


def test_an_attribute_that_says_what_is_the_default_means_nothing(match: Match) -> None:
    mine, other = {"a": square()}, {"p": square()}
    given = make_node("Gemm", ["x", "p"], ["y"], alpha=1.0, transA=0)
    assert match([make_node("Gemm", ["x", "a"], ["y"])], mine, [given], other) == {"a": "p"}
    halved = make_node("Gemm", ["x", "p"], ["y"], alpha=0.5)
    with pytest.raises(Rejected, match="Gemm 'y' of the definition and Gemm 'y' of the file have other attributes"):
        match([make_node("Gemm", ["x", "a"], ["y"])], mine, [halved], other)


def test_a_weight_that_was_two_parameters_feeds_both(match: Match) -> None:
    assert match(layers("a", "b"), {"a": square(), "b": square()}, layers("p", "p"), {"p": square()}) == {
        "a": "p",
        "b": "p",
    }


def test_two_weights_become_one_parameter_only_if_they_are_equal(match: Match) -> None:
    same = square()
    copy = make_node("Identity", ["p"], ["q"])  # as exporters write weights that were equal
    assert match(layers("a", "a"), {"a": square()}, [copy, *layers("p", "q")], {"p": same}) == {"a": "p"}
    assert match(layers("a", "a"), {"a": square()}, layers("p", "q"), {"p": same, "q": same}) == {"a": "p"}
    with pytest.raises(Rejected, match="one 'a' where the file has 'p', 'q'") as raised:
        match(layers("a", "a"), {"a": square()}, layers("p", "q"), {"p": same, "q": square()})
    assert raised.value.code == "graph_differs"


def test_weights_of_a_body_are_found(match: Match) -> None:
    def conditional(names: Sequence[str], inner: str) -> list[NodeProto]:
        then, other = (
            make_graph([make_node("MatMul", ["x", name], [inner])], inner, [], [make_tensor_value_info(inner, 1, None)])
            for name in names
        )
        return [
            make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            make_node("Cast", ["s"], ["is_any"], to=9),
            make_node("If", ["is_any"], ["y"], then_branch=then, else_branch=other),
        ]

    mine, other = {"a": square(), "b": square()}, {"p": square(), "q": square()}
    assert match(conditional("ab", "r"), mine, conditional("qp", "t"), other) == {"a": "q", "b": "p"}


@pytest.mark.parametrize(
    ("nodes", "weights", "words"),
    [
        (
            [*layers("p", "q")[:-1], make_node("MatMul", ["p.out", "q"], ["m"]), make_node("Relu", ["m"], ["y"])],
            {"p": square(), "q": square()},
            "has MatMul 'y' where the file has Relu 'y'",
        ),
        (layers("p", "q"), {"p": square(), "q": square().astype(np.float64)}, "'b', F32 .4, 4., has .* F64"),
        (layers("p", "q"), {"p": square(), "q": square()[:, :3]}, r"'b', F32 \[4, 4\], has .* F32 \[4, 3\]"),
        (layers("p"), {"p": square()}, "MatMul a.out|MatMul 'a.out' where the file has the input 'x'"),
    ],
)
def test_what_differs_is_refused_and_shown(
    match: Match, nodes: Sequence[NodeProto], weights: Mapping[str, Array], words: str
) -> None:
    with pytest.raises(Rejected, match=words) as raised:
        match(layers("a", "b"), {"a": square(), "b": square()}, nodes, weights)
    assert raised.value.code == "graph_differs"


def test_a_transposed_weight_and_a_changed_constant_are_refused(match: Match) -> None:
    tall, wide = np.ones((4, 3), np.float32), np.ones((3, 4), np.float32)
    turned = [make_node("Transpose", ["q"], ["t"], perm=[1, 0]), make_node("MatMul", ["x", "t"], ["y"])]
    with pytest.raises(Rejected, match=r"the parameter 'a', F32 \[4, 3\] where the file has Transpose"):
        match(layers("a"), {"a": tall}, turned, {"q": wide})

    def reshaped(name: str) -> list[NodeProto]:
        return [*layers(name)[:-1], make_node("MatMul", ["x", name], ["m"]), make_node("Reshape", ["m", "s"], ["y"])]

    shape = np.array([-1, 4], np.int64)
    with pytest.raises(Rejected, match=r"the constant 's', I64 \[2\], has other values"):
        match(reshaped("a"), {"a": square(), "s": shape}, reshaped("b"), {"b": square(), "s": shape[::-1].copy()})
