"""What is seen of a graph's nodes."""

import numpy as np
from onnx import helper, numpy_helper

from tests.workers.engine_host.normaliser.graphs import graph
from workers.engine_host.preflight.node_facts import NodeFacts, Value, facts_of


def test_origin_dtype_and_rank_of_each_input_are_told() -> None:
    model = graph("g (float[2, 3] x) => (float[2, 4] y) { h = MatMul(x, w) y = Relu(h) }", parameters={"w": [3, 4]})
    found = dict(facts_of(model, ()))
    assert found["h"].inputs == (Value("input", "F32", 2), Value("parameter", "F32", 2))
    assert found["y"].inputs == (Value("computed", "F32", 2),)
    assert found["y"].outputs == ("F32",)


def test_constants_of_zero_are_told_from_others() -> None:
    model = graph("g (float[2] x) => (float[2] y) { h = Add(x, a) y = Add(h, b) }")
    for name, value in (("a", 0.0), ("b", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(2, value, np.float32), name))
    found = dict(facts_of(model, ()))
    assert [found[name].input(1).zero for name in ("h", "y")] == [True, False]


def test_only_watched_attributes_are_told_and_what_is_left_out_is_absent() -> None:
    node = helper.make_node("Clip", ["x", "", "high"], ["y"], name="clip")
    model = graph("g (float[2] x, float high) => (float[2] y) { y = LeakyRelu<alpha = 0.5>(x) }")
    model.graph.node.append(node)
    found = dict(facts_of(model, {"alpha"}))
    assert found["y"].attribute("alpha") == 0.5
    assert found["clip"].input(1).origin == "absent"
    assert found["clip"].input(9).origin == "absent"
    assert not dict(facts_of(model, {"beta"}))["y"].attributes


def test_nodes_of_branches_see_the_values_around_them() -> None:
    model = graph(
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <"
        "then_branch = t () => (float[2] a) { a = Relu(x) }, else_branch = e () => (float[2] b) { b = Neg(x) }> }"
    )
    found = dict(facts_of(model, ()))
    assert found["a"].inputs == found["b"].inputs == (Value("input", "F32", 1),)


def test_facts_are_read_as_they_were_written() -> None:
    facts = NodeFacts("Conv", "", (Value("input", "F32", 4), Value("absent")), ("F32", None), (("pads", (1, 1)),))
    assert NodeFacts.from_json(facts.to_json()) == facts
