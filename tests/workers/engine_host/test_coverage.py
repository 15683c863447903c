"""Which parameters a verification would notice a change of."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from app.weights.dtypes import numpy_dtype
from tests.workers.hosting import Hosting
from tests.workers.networks import Network, attention, bound, checkpoint, network_of
from workers.channel.messages import Built, Check, EngineFile, Refit, Sight, Verified, Verify
from workers.engine_host import inner_values, stored_bytes
from workers.engine_host.coverage import is_saturated, shortened
from workers.engine_host.deviations import LARGE, changed
from workers.engine_host.engines import Engines
from workers.engine_host.onnx_graph import tables

Parameters = dict[str, tuple[str, tuple[int, ...]]]
X = (InputSpec("x", "F32", ("n", 8)),)


def built(hosting: Hosting, network: Network, weights: dict[str, Any] | None = None, **changes: Any) -> EngineFile:  # noqa: ANN401 - fields of Build
    values = weights or network.weights(1)
    return hosting.build(network, bound(network, checkpoint(hosting.folder / "w.safetensors", values)), **changes)[1]


def sees(hosting: Hosting, engine: EngineFile, **check: Any) -> Sight:  # noqa: ANN401 - fields of Check
    found = hosting.verify(engine, coverage_s=60.0, **check)
    assert found.ok, found.detail
    assert found.sees is not None
    return found.sees


def test_every_parameter_is_seen_and_those_that_no_output_depends_on_are_named(
    hosting: Hosting, tmp_path: Path
) -> None:
    """A bias of the keys adds the same to all scores of a query, which softmax takes away: only the keys show it."""
    network = attention(tmp_path / "net.onnx")
    found = hosting.verify(built(hosting, network), coverage_s=60.0)
    sight = found.sees
    assert sight is not None
    assert (sight.parameters, sight.of, sight.tried, sight.by_inner) == (11, 11, 11, 1)
    assert (sight.unseen, sight.unseen_swapped, sight.without_effect) == ((), (), ("k.bias",))
    assert "100 times its size ends in Softmax s2" in sight.reasons["k.bias"]
    assert sight.in_part == ("embeddings",)
    assert len(sight.inner) == 1
    assert found.inner[sight.inner[0]].max_abs is not None


def test_an_engine_with_a_wrong_weight_that_no_output_shows_fails_by_an_inner_value(tmp_path: Path) -> None:
    """It holds another bias of the keys than it says, and gives the same outputs."""
    network = attention(tmp_path / "net.onnx")
    right = network.weights(1)
    wrong = {**right, "k.bias": right["k.bias"] * np.float32(1.5)}
    named, held = (
        bound(network, checkpoint(tmp_path / f"{name}.safetensors", values))
        for name, values in (("right", right), ("wrong", wrong))
    )
    engines = Engines("cpu", 1 << 30, tmp_path / "scratch", lambda _message: None)
    request = network.build(named, tmp_path / "plan.onnx", check=Check(coverage_s=60.0))
    built = engines.do(request)
    assert isinstance(built, Built)
    assert built.verification is not None
    assert built.verification.sees is not None
    inner = built.verification.sees.inner

    engines.do(Refit(request.engine(built), held, str(tmp_path / "refitted.onnx"), Check("none", inner=inner)))
    # The engine is found by the digests of what it holds; the reference reads what the weight version says.
    claims = [
        replace(said, tensors=(replace(said.tensors[0], blake3=one.tensors[0].blake3),))
        for said, one in zip(named, held, strict=True)
    ]
    claimed = replace(request.engine(built), parameters=tuple(claims))
    with patch.object(stored_bytes, "_check", lambda _tensors: 0):  # it would refuse what is claimed here
        by_outputs, by_inner = (engines.do(Verify(claimed, Check(inner=one))) for one in ((), inner))
    assert isinstance(by_outputs, Verified)
    assert isinstance(by_inner, Verified)
    assert (by_outputs.ok, by_inner.ok) == (True, False)
    assert inner[0] in by_inner.detail


def test_what_nothing_is_computed_from_is_named(hosting: Hosting, tmp_path: Path) -> None:
    """The branch behind the rectifier is dead, whatever its weights are, and so is a swap."""
    parameters: Parameters = dict.fromkeys(("alive", "dead.1", "dead.2"), ("F32", (8,)))
    nodes = [
        helper.make_node("Add", ["dead.1", "dead.2"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("Mul", ["x", "alive"], ["a"]),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    network = network_of(tmp_path / "net.onnx", nodes, parameters, X, {"y": "F32"})
    weights = {name: np.full(8, -9 if "dead" in name else 1, np.float32) for name in parameters}
    weights["dead.1"][0] = -8
    sight = sees(hosting, built(hosting, network, weights))
    assert (sight.parameters, sight.by_inner, sight.inner, sight.unseen) == (3, 2, ("d",), ())
    assert sight.without_effect == ()  # far larger ones would open the rectifier


def test_outputs_alone_are_looked_at_if_the_engine_shows_nothing_else(hosting: Hosting, tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["w", "w"], ["zero"]), helper.make_node("Add", ["x", "zero"], ["y"])]
    network = network_of(tmp_path / "net.onnx", nodes, {"w": ("F32", (8,))}, X, {"y": "F32"})
    sight = sees(hosting, built(hosting, network))
    assert (sight.parameters, sight.unseen, sight.without_effect) == (0, ("w",), ("w",))
    assert "no output depends on it" in sight.reasons["w"]


def test_what_large_values_of_an_output_drown_has_an_effect(hosting: Hosting, tmp_path: Path) -> None:
    """Half of the output is filled with the least number, as masked logits are."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"]),
        helper.make_node("Where", ["kept", "m", "least"], ["y"]),
    ]
    constants = {"kept": np.arange(8) < 4, "least": np.array(np.finfo(np.float32).min)}
    network = network_of(tmp_path / "net.onnx", nodes, {"w": ("F32", (8,))}, X, {"y": "F32"}, constants=constants)
    sight = sees(hosting, built(hosting, network))
    assert (sight.by_inner, sight.inner, sight.without_effect) == (1, ("m",), ())


def test_what_there_was_no_time_to_look_into_says_so() -> None:
    counts: dict[str, Any] = {"parameters": 0, "of": 2, "tried": 2, "seconds": 10.0, "saturated": ()}
    sight = Sight(**counts, unseen=("v", "w"), unseen_swapped=(), in_part=(), reasons={"v": "it is small"})
    reasons = shortened(sight).reasons
    assert reasons["v"] == "it is small"
    assert '"coverage": "full"' in reasons["w"]


def test_what_an_output_saturates_the_value_before_it_shows(hosting: Hosting, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["y"]),
    ]
    parameters: Parameters = {"w": ("F32", (8,)), "b": ("F32", (8,))}
    network = network_of(tmp_path / "net.onnx", nodes, parameters, X, {"y": "F32"})
    weights = {"w": np.ones(8, np.float32), "b": np.full(8, 80, np.float32)}
    sight = sees(hosting, built(hosting, network, weights))
    assert (sight.parameters, sight.by_inner, sight.inner, sight.saturated) == (2, 2, ("s",), ("y",))


@pytest.mark.parametrize("shows", [True, False])
def test_inputs_are_chosen_that_see_more_unless_inner_values_do(tmp_path: Path, shows: bool) -> None:  # noqa: FBT001 - a parameter
    """A sequence of one has nothing to attend to, so neither queries nor keys show in the output."""
    network = attention(tmp_path / "net.onnx")
    sources = bound(network, checkpoint(tmp_path / "w.safetensors", network.weights(1)))
    profile = {"ids": Range((1, 1), (1, 1), (1, 16))}
    engines = Engines("cpu", 1 << 30, tmp_path / "scratch", lambda _message: None)
    request = network.build(sources, tmp_path / "plan.onnx", profiles=(profile,), check=Check(coverage_s=60.0))
    with patch.object(inner_values, "ShowsInnerValues", object if shows else int):  # what every engine is, or none
        made = engines.do(request)
    assert isinstance(made, Built)
    found = made.verification
    assert found is not None
    assert found.made_up is not None
    assert found.sees is not None
    assert found.made_up["shapes"] == {"ids": [1, 1 if shows else 16]}
    assert found.sees.unseen == (() if shows else ("k.bias",))
    assert ("k.bias" in found.sees.without_effect, found.sees.by_inner > 0) == (True, shows)
    again = engines.do(Verify(request.engine(made), Check(made_up=found.made_up)))
    assert isinstance(again, Verified)
    assert (again.inputs, again.sees) == (found.inputs, None)


def test_it_is_measured_once_for_a_definition_and_its_inputs(hosting: Hosting, tmp_path: Path) -> None:
    engine = built(hosting, attention(tmp_path / "net.onnx"))
    assert sees(hosting, engine) == sees(hosting, engine)


def test_it_stops_when_its_time_is_over(hosting: Hosting, tmp_path: Path) -> None:
    found = hosting.verify(built(hosting, attention(tmp_path / "net.onnx")), coverage_s=1e-9)
    assert found.ok
    assert found.sees is not None
    assert (found.sees.parameters, found.sees.of, found.sees.tried) == (0, 11, 0)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_a_change_is_of_a_hundredth_as_far_as_the_dtype_allows(dtype: str) -> None:
    value = np.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]).astype(numpy_dtype(dtype))
    before, after = value.astype(np.float64), changed(value).astype(np.float64)
    step = max(0.01, float(ml_dtypes.finfo(value.dtype).eps))  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(np.abs(after - before), step, rtol=0.6)
    assert changed(value).dtype == value.dtype


def test_integers_change_by_one_at_least_and_stay_in_their_range() -> None:
    value = np.array([-128, 0, 5, 127], np.int8)
    after = changed(value)
    assert after.dtype == np.int8
    assert np.abs(after.astype(int) - value.astype(int)).max() == 1
    assert (changed(np.array([10_000, -10_000])) != [10_000, -10_000]).all()
    assert changed(np.array([True, False])).tolist() == [False, True]
    far = changed(np.array([-100, 100, 3, 4], np.int8), LARGE)
    assert set(far.tolist()) <= {-128, 127}
    assert (abs(changed(np.array([1000, -1000], np.int32), LARGE)) > 90_000).all()


def test_zeros_change_and_what_is_not_finite_stays() -> None:
    assert (changed(np.zeros(4, np.float32)) != 0).all()
    after = changed(np.array([np.inf, np.nan, 1.0], np.float32))
    assert (np.isposinf(after[0]), np.isnan(after[1]), after[2] != 1) == (True, True, True)
    assert changed(np.zeros(0, np.float32)).size == 0


def test_only_floats_that_hardly_vary_are_saturated() -> None:
    assert is_saturated(np.array([0.0] * 9 + [1.0], np.float32))
    assert not is_saturated(np.linspace(0, 1, 10, dtype=np.float32))
    assert not is_saturated(np.zeros(9, np.int64))
    assert not is_saturated(np.zeros(1, np.float32))


def test_a_table_that_is_used_whole_elsewhere_is_seen_whole() -> None:
    look_up = helper.make_node("Gather", ["table", "ids"], ["rows"])
    head = helper.make_node("MatMul", ["rows", "table"], ["logits"])
    assert tables(helper.make_graph([look_up], "g", [], [])) == {"table"}
    assert tables(helper.make_graph([look_up, head], "g", [], [])) == set()


def test_a_slice_looks_rows_up_if_its_bounds_are_computed() -> None:
    sliced = helper.make_node("Slice", ["table", "start", "end"], ["rows"])
    bounds = [TensorProto(name="start"), TensorProto(name="end")]
    assert tables(helper.make_graph([sliced], "g", [], [], bounds[:1])) == {"table"}
    assert tables(helper.make_graph([sliced], "g", [], [], bounds)) == set()


@pytest.mark.parametrize(
    "made",
    [
        [helper.make_node("OneHot", ["ids", "depth", "values"], ["hot"])],
        [helper.make_node("Equal", ["ids", "all"], ["same"]), helper.make_node("Cast", ["same"], ["hot"], to=1)],
    ],
)
def test_a_product_with_one_hot_indices_looks_rows_up(made: list[NodeProto]) -> None:
    product = helper.make_node("MatMul", ["hot", "table"], ["rows"])
    other = helper.make_node("MatMul", ["x", "table"], ["y"])
    assert tables(helper.make_graph([*made, product], "g", [], [])) == {"table"}
    assert tables(helper.make_graph([*made, product, other], "g", [], [])) == set()


def test_a_table_that_only_an_inner_value_shows_is_seen_in_part(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "steep"], ["steeper"]),
        helper.make_node("Sigmoid", ["steeper"], ["y"]),
    ]
    inputs = (InputSpec("ids", "I64", ("batch",), 32),)
    steep = {"steep": np.array(1e6, np.float32)}
    network = network_of(tmp_path / "net.onnx", nodes, {"table": ("F32", (32, 4))}, inputs, {"y": "F32"}, steep)
    weights = bound(network, checkpoint(tmp_path / "w.safetensors", network.weights(1)))
    engines = Engines("cpu", 1 << 30, tmp_path / "scratch", lambda _message: None)
    built = engines.do(network.build(weights, tmp_path / "plan.onnx", check=Check(coverage_s=60.0)))
    assert isinstance(built, Built)
    assert built.verification is not None
    assert built.verification.sees is not None
    sees = built.verification.sees
    assert (sees.parameters, sees.by_inner, sees.in_part) == (1, 1, ("table",))
