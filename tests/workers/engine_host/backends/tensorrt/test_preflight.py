"""What is told of a graph before TensorRT compiles it. No release of TensorRT is called."""

from typing import Any, NoReturn

import pytest
from onnx import ModelProto, TensorProto

from tests.workers.engine_host.normaliser.graphs import graph, profile
from workers.engine_host.backends.tensorrt.preflight import check_tensorrt
from workers.engine_host.normaliser import normalise
from workers.engine_host.preflight.verdict import Question, Verdict

# The branch with Det is taken only if there are more than 4 rows.
BRANCHING = graph(
    "g (float[n, 4] x) => (float[n, 4] y) {"
    "  shape = Shape (x) zero = Constant <value = int64 {0}> () rows = Gather (shape, zero)"
    "  four = Constant <value = int64 {4}> () many = Greater (rows, four)"
    "  y = If (many) <then_branch = t () => (float[n, 4] a) { d = Det (square) a = Mul (x, d) },"
    "                 else_branch = e () => (float[n, 4] b) { b = Mul (x, w) }>"
    "}",
    parameters={"w": [4], "square": [4, 4]},
)


def verdict(model: ModelProto, version: str = "8.6.1", *, details: bool = True, **asked: Any) -> Verdict:  # noqa: ANN401 - as a Question has them
    question = Question((version,), asked.pop("profiles", ()), asked.pop("options", {}), details)
    (found,) = check_tensorrt(model, question)
    return found


def test_a_refused_operator_is_named_with_its_nodes_and_a_remedy() -> None:
    found = verdict(BRANCHING, profiles=(profile(x=([1, 4], [8, 4])),))
    assert found.taken is False
    (finding,) = found.refused
    assert (finding.operator, finding.nodes) == ("Det", ("d",))
    assert any("onnxruntime" in remedy for remedy in found.remedies)


def test_what_the_normaliser_takes_away_is_not_refused() -> None:
    found = verdict(BRANCHING, profiles=(profile(x=([1, 4], [4, 4])),))
    assert found.taken is True
    assert "Det" not in found.operators
    assert "branch_taken" in {one["rewrite"] for one in found.rewrites}
    assert all(one["meaning"] for one in found.rewrites)


def test_narrower_profiles_are_advised_only_if_they_help() -> None:
    helped = verdict(BRANCHING, profiles=(profile(x=([1, 4], [8, 4])),))
    beyond_help = verdict(graph("g (float[n, 4, 4] x) => (float[n] y) { y = Det (x) }"), profiles=())
    assert [any("Narrow" in remedy for remedy in one.remedies) for one in (helped, beyond_help)] == [True, False]


def test_without_details_the_same_is_refused_and_taken() -> None:
    for top in (4, 8):
        shapes = (profile(x=([1, 4], [top, 4])),)
        assert verdict(BRANCHING, profiles=shapes).taken == verdict(BRANCHING, details=False, profiles=shapes).taken


def test_without_details_a_graph_of_known_operators_is_not_normalised() -> None:
    model = graph("g (float[n, 4] x) => (float[n, 4] y) { y = Squeeze (x) }")
    shapes = (profile(x=([2, 4], [2, 4])),)
    assert verdict(model, profiles=shapes).rewrites
    assert not verdict(model, details=False, profiles=shapes).rewrites


def test_each_version_is_judged_by_its_own_table() -> None:
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Hardmax (x) }")
    found = check_tensorrt(model, Question(("8.6.1", "10.0.1", "7.2"), (), {}))
    assert [(one.version, one.taken) for one in found] == [("8.6.1", False), ("10.0.1", True), ("7.2", None)]
    assert "10.0" in " ".join(found[0].remedies)


def test_without_versions_all_tables_are_asked() -> None:
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Relu (x) }")
    found = check_tensorrt(model, Question((), (), {}))
    assert [one.version for one in found] == ["8.6", "9", "10.0", "10.2"]


def test_a_newer_opset_than_the_parsers_is_doubtful() -> None:
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Unheard (x) }", opset=21)
    model.graph.node[0].op_type = "Relu"
    model.opset_import[0].version = 99
    assert any("opset 99" in one.reason for one in verdict(model).doubtful)


def test_whole_numbers_of_8_bits_are_refused_where_types_are_hints() -> None:
    model = graph("g (int8[2] x) => (float[2] y) { y = Cast <to = 1> (x) }")
    assert verdict(model).taken is False
    assert verdict(model, "10.0.1").taken is not False
    assert verdict(model, "10.0.1", options={"precision": "fp16"}).taken is False


def test_parameters_that_refits_cannot_change_are_told_with_the_reason() -> None:
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Mul (x, w) }", parameters={"w": [4], "unread": [4]})
    everything = verdict(model).refittable
    assert (everything.count, everything.fixed) == (1, ("unread",))
    assert verdict(model, options={"refit": "none"}).refittable.count == 0
    listed = verdict(model, options={"refit": ["unread"]}).refittable
    assert (listed.count, listed.fixed) == (0, ("w", "unread"))
    assert listed.why


def test_a_parameter_of_a_type_that_there_is_not_is_refused() -> None:
    model = graph("g (bfloat16[2, 4] x) => (bfloat16[2, 4] y) { y = Mul (x, w) }", parameters={"w": [4]})
    model.graph.initializer[0].data_type = TensorProto.BFLOAT16
    assert "BF16" in verdict(model).refused[0].reason
    assert verdict(model, "10.0.1").taken is True


TWO_OUTPUTS = graph(
    "g (bool b, float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {"
    "  y, z = If (b) <then_branch = t () => (c, d) { c = Mul (x, w) d = Sin (x) },"
    "                 else_branch = e () => (f, g) { g = Mul (x, w) f = Cos (x) }>"
    "}",
    parameters={"w": [4]},
)


def test_an_if_of_two_outputs_is_split_for_a_parser_that_mixes_them_up() -> None:
    split, kept = verdict(TWO_OUTPUTS), verdict(TWO_OUTPUTS, "10.0.1")

    assert (split.taken, split.operators["If"]) == (True, 2)
    assert (kept.taken, kept.operators["If"]) == (True, 1)


def test_an_if_of_two_outputs_that_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalise, "split_branches", raising)
    found = verdict(TWO_OUTPUTS)

    assert (found.taken, [one.operator for one in found.refused]) == (False, ["If"])
    assert verdict(TWO_OUTPUTS, details=False).taken is False
    assert verdict(TWO_OUTPUTS, "10.0.1").taken is True


def raising(*_: object) -> NoReturn:
    raise ValueError("it cannot be done")
