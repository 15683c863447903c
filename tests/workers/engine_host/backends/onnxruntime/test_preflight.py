"""What onnxruntime says of a graph when it is asked without weights."""

import onnxruntime as ort
import pytest

from tests.workers.engine_host.normaliser.graphs import graph
from workers.engine_host.backends.onnxruntime.preflight import check_onnxruntime
from workers.engine_host.preflight.verdict import Question

CONV = "g (double[1,1,4,4] x, double[1,1,2,2] k) => (double[1,1,3,3] y) { [conv] y = Conv (x, k) }"


def ask(
    text: str, *, versions: tuple[str, ...] = (), parameters: dict[str, list[int]] | None = None
) -> list[bool | None]:
    return [one.taken for one in check_onnxruntime(graph(text, parameters=parameters), Question(versions, (), {}))]


def test_a_graph_that_it_runs_is_taken() -> None:
    text = "g (float[2, 4] x) => (float[2, 4] y) { h = Mul (x, w) y = Det (h) }"
    assert ask(text.replace("Det", "Relu"), parameters={"w": [4]}) == [True]


@pytest.mark.parametrize(
    ("text", "operator", "nodes"),
    [
        (CONV, "Conv", ("conv",)),
        ("g (float[2] x, float[1] s) => (float[2] y) { [shape] y = Reshape (x, s) }", "Reshape", ("shape",)),
    ],
)
def test_the_first_node_that_it_does_not_take_is_named(text: str, operator: str, nodes: tuple[str, ...]) -> None:
    (verdict,) = check_onnxruntime(graph(text), Question((), (), {}))
    (finding,) = verdict.refused
    assert verdict.taken is False
    assert (finding.operator, finding.nodes) == (operator, nodes)
    assert verdict.remedies


def test_only_the_installed_version_can_be_asked() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Relu (x) }"
    assert ask(text, versions=("0.1", ort.__version__)) == [None, True]


def test_every_parameter_can_be_refitted() -> None:
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Mul (x, w) }", parameters={"w": [4]})
    (verdict,) = check_onnxruntime(model, Question((), (), {}))
    assert (verdict.refittable.count, verdict.refittable.fixed_count) == (1, 0)
