import numpy as np
import pytest
from onnx import ModelProto

from app.definitions.graph_walk import with_subgraphs
from tests.workers.engine_host.normaliser.graphs import Array, computed, graph, operators
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.mixed_up import mixed_up
from workers.engine_host.normaliser.normalise import normalise
from workers.engine_host.normaliser.parser import Parser

SINGLE = Parser(17, single_branches=True)
X = np.random.default_rng(4).standard_normal((2, 4)).astype(np.float32)
W = np.random.default_rng(5).standard_normal((4, 4)).astype(np.float32)
TWO = """agraph (bool b, bool c, float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
    y, z = If(b) <
        then_branch = yes () => (p, q) { p = MatMul(x, w) r = Relu(p) q = Add(r, p) },
        else_branch = no () => (s, t) { t = MatMul(w2, w) s = Sub(x, t) }
    >
}"""
INNER = """agraph (bool b, bool c, float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
    i, z = If(b) <
        then_branch = yes () => (p, q) {
            o, q = If(c) <
                then_branch = yes_yes () => (d, e) { d = MatMul(x, w) e = Relu(d) },
                else_branch = yes_no () => (f, g) { f = Neg(x) g = Abs(f) }
            >
            p = Add(o, x)
        },
        else_branch = no () => (s, t) { s = Sub(x, w2) t = Mul(x, w2) }
    >
    y = Sin(i)
}"""
BEGUN = """agraph (bool b, bool c, float[n, 4] x) => (float[m, 4] y) {
    y = If(b) <
        then_branch = yes () => (p) { p, p_rest = Split<axis = 0>(x) },
        else_branch = no () => (s) { s = Sub(x, w2) }
    >
}"""
UNREAD = """agraph (bool b, bool c, float[n, 4] x) => (float[n, 4] y) {
    y = If(b) <
        then_branch = yes () => (p) { p = MatMul(x, w) r = Relu(p) },
        else_branch = no () => (s) { s = Sub(x, w2) }
    >
}"""


def conditional(text: str) -> ModelProto:
    return graph(text, parameters={"w": [4, 4], "w2": [2, 4]})


def each_way(model: ModelProto) -> list[list[Array]]:
    ways = [(b, c) for b in (True, False) for c in (True, False)]
    return [computed(model, {"b": np.array(b), "c": np.array(c), "x": X, "w": W, "w2": X}) for b, c in ways]


@pytest.mark.parametrize("text", [TWO, INNER])
def test_an_if_of_several_outputs_becomes_one_for_each(text: str) -> None:
    model = conditional(text)
    normal = normalise(model, [], SINGLE)

    assert mixed_up(model)
    assert not mixed_up(normal.model)
    assert "branches_split" in {one.kind for one in normal.rewrites}
    assert list(onnx_graph.parameters_of(normal.model)) == ["w", "w2"]
    for before, after in zip(each_way(model), each_way(normal.model), strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


def test_all_names_of_the_copies_differ() -> None:
    model = normalise(conditional(INNER), [], SINGLE).model
    names = [name for node in with_subgraphs(model.graph.node) for name in node.output]

    assert len(names) == len(set(names))


def test_a_parser_that_finds_outputs_by_name_gets_the_if_as_it_is() -> None:
    model = conditional(TWO)

    assert normalise(model, [], Parser(17)).model is model


def test_an_output_that_nothing_reads_gets_no_if_of_its_own() -> None:
    model = conditional(TWO.replace(", float[n, 4] z)", ")"))
    normal = normalise(model, [], SINGLE)

    assert operators(normal.model).count("If") == 1
    np.testing.assert_array_equal(each_way(normal.model)[0], each_way(model)[0])


@pytest.mark.parametrize(("text", "kind"), [(BEGUN, "output_set_apart"), (UNREAD, "branches_cleared")])
def test_an_output_that_could_be_taken_for_another_or_not_found_is_set_apart(text: str, kind: str) -> None:
    model = conditional(text)
    normal = normalise(model, [], SINGLE)

    assert mixed_up(model)
    assert not mixed_up(normal.model)
    assert [one.kind for one in normal.rewrites] == [kind]
    for before, after in zip(each_way(model), each_way(normal.model), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
