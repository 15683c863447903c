from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from app.bindings.transforms import Cast
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from app.definitions.tensor_data import ONNX_TYPES
from app.engines.against import Against
from app.weights.dtypes import numpy_dtype
from tests.workers.hosting import Hosting
from tests.workers.networks import attention, bound, checkpoint, network_of, perceptron, quantised
from tests.workers.processes import status_bytes
from workers.channel.messages import BackendError, Check, EngineFile, OutputDifference, Verified, Verify
from workers.engine_host import references as held
from workers.engine_host.backends.onnxruntime.backend import OnnxruntimeEngine
from workers.engine_host.comparison import TOLERANCES, Comparison, difference, fault_of, is_finite, tolerance_of
from workers.engine_host.cost import Costs, no_limit
from workers.engine_host.engines import Engines
from workers.engine_host.onnx_graph import quantises, softmaxes
from workers.engine_host.references import References
from workers.engine_host.run_inputs import digest_of, fixed_inputs
from workers.engine_host.tensors import ParameterFiles, write_tensors

Array = np.ndarray[Any, np.dtype[Any]]
F32 = tolerance_of((), {})


@pytest.fixture
def engine(hosting: Hosting, tmp_path: Path) -> EngineFile:
    network = attention(tmp_path / "definition.onnx")
    return hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))[1]


def test_an_engine_agrees_with_its_definition(hosting: Hosting, engine: EngineFile) -> None:
    verified = hosting.verify(engine)

    assert verified.ok
    assert verified.against == "reference"
    assert verified.outputs["y"].finite
    assert 0 < (verified.outputs["y"].relative_l2 or 0) <= verified.tolerance["relative_l2"]
    assert verified.tolerance["dtype"] == "F32"
    assert verified.inputs == digest_of(fixed_inputs(engine.inputs, ()))


def negated(engine: EngineFile, path: Path) -> EngineFile:
    """Return the engine as one of a definition whose output has the other sign."""
    model = onnx.load(engine.definition, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["-y" if name == "y" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["-y"], ["y"]))
    onnx.save(model, path)
    return replace(engine, definition=str(path))


def test_an_engine_that_computes_something_else_fails(hosting: Hosting, engine: EngineFile, tmp_path: Path) -> None:
    verified = hosting.verify(negated(engine, tmp_path / "other.onnx"))

    assert not verified.ok
    assert "output y differs by" in verified.detail
    assert (verified.outputs["y"].relative_l2 or 0) > 0.01


@pytest.mark.parametrize("against", ["rebuild", "finite", "none"])
def test_other_kinds_of_verification(hosting: Hosting, engine: EngineFile, against: Against) -> None:
    verified = hosting.verify(engine, against)

    assert verified.ok
    assert verified.against == against
    assert set(verified.outputs) == (set() if against == "none" else {"y"})
    if against == "rebuild":
        assert verified.outputs["y"] == OutputDifference(0.0, 0.0, 1.0, finite=True)
    if against == "finite":
        assert verified.outputs["y"] == OutputDifference(None, None, None, finite=True)


def suppressing(hosting: Hosting, suppressed: float) -> EngineFile:
    """An engine whose output holds this value in its fourth column."""
    network = perceptron(hosting.folder / "suppressing.onnx")
    weights = network.weights(1)
    weights["1.bias"][3] = suppressed
    sources = bound(network, checkpoint(hosting.folder / "suppressing.safetensors", weights))
    return hosting.build(network, sources)[1]


@pytest.mark.parametrize("suppressed", [np.nan, np.inf])
def test_what_is_not_finite_as_in_the_reference_is_equal_to_it(hosting: Hosting, suppressed: float) -> None:
    engine = suppressing(hosting, suppressed)
    found = hosting.verify(engine)
    assert found.ok
    assert (found.outputs["y"].finite, found.outputs["y"].unequal) == (False, 0)
    assert found.outputs["y"].relative_l2 is not None

    refused = hosting.verify(engine, "finite")
    assert (refused.ok, refused.detail) == (False, "output y holds NaN or infinity")


def test_outputs_that_are_nan_and_nothing_else_are_never_ok(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    weights = network.weights(1) | {"1.bias": np.full(8, np.nan, np.float32)}
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", weights)))
    found = hosting.verify(engine)
    assert not found.ok
    assert "says nothing" in found.detail


def given(hosting: Hosting, name: str, **arrays: Array) -> str:
    path = str(hosting.folder / f"{name}.safetensors")
    write_tensors(path, arrays)
    return path


def test_inputs_of_the_client_are_taken(hosting: Hosting, engine: EngineFile) -> None:
    ids = np.arange(6).reshape(1, 6)
    found = hosting.verify(engine, inputs=given(hosting, "in", ids=ids))
    assert found.ok
    assert (found.made_up, found.inputs) == (None, digest_of({"ids": ids}))


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"idz": np.zeros((1, 4), np.int64)}, "input ids I64"),
        ({"ids": np.zeros((1, 4), np.float32)}, "ids is F32, not I64"),
        ({"ids": np.zeros((1, 4, 2), np.int64)}, "3 dimensions, not 2"),
        ({"ids": np.full((1, 4), 99)}, "holds 99"),
    ],
)
def test_inputs_of_the_client_that_do_not_fit_are_named(
    hosting: Hosting, engine: EngineFile, arrays: dict[str, Array], fault: str
) -> None:
    with pytest.raises(BackendError, match="The inputs to verify with do not fit") as caught:
        hosting.verify(engine, inputs=given(hosting, "in", **arrays))
    assert caught.value.code == "bad_inputs"
    assert fault in caught.value.detail


def test_outputs_that_the_client_expects_stand_for_the_reference(hosting: Hosting, engine: EngineFile) -> None:
    inputs = {"ids": np.arange(6).reshape(1, 6)}
    outputs = hosting.run(engine, inputs)
    path = given(hosting, "ids", **inputs)

    found = hosting.verify(engine, inputs=path, expected=given(hosting, "y", **outputs))
    assert (found.ok, found.against) == (True, "expected")
    wrong = hosting.verify(engine, inputs=path, expected=given(hosting, "y2", y=outputs["y"] * 1.01))
    assert not wrong.ok
    lenient = hosting.verify(
        engine,
        inputs=path,
        expected=given(hosting, "y2", y=(outputs["y"] * 1.01).astype(np.float32)),
        tolerance={"relative_l2": 0.02, "cosine": 0.99},
    )
    assert lenient.ok
    assert (lenient.tolerance["relative_l2"], lenient.tolerance["max_abs"]) == (0.02, F32.max_abs)
    other = hosting.verify(engine, inputs=path, expected=given(hosting, "y3", y=outputs["y"], z=outputs["y"]))
    assert "no output z" in other.detail
    nothing = hosting.verify(engine, inputs=path, expected=given(hosting, "none"))
    assert (nothing.ok, nothing.detail) == (False, "no output is expected: give at least one of y")
    with pytest.raises(BackendError, match="is expected"):
        hosting.verify(engine, inputs=path, expected=given(hosting, "y4", y=outputs["y"][:, :5]))


def test_inputs_of_the_client_that_the_definition_cannot_run_on_are_no_fault_of_the_engine(
    hosting: Hosting, tmp_path: Path
) -> None:
    nodes = [onnx.helper.make_node("Reshape", ["x", "s"], ["r"]), onnx.helper.make_node("Mul", ["r", "w"], ["y"])]
    inputs, constants = (InputSpec("x", "F32", ("n",)),), {"s": np.array([-1, 7], np.int64)}
    network = network_of(tmp_path / "net.onnx", nodes, {"w": ("F32", (1,))}, inputs, {"y": "F32"}, constants)
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "w.safetensors", network.weights(1))))
    eight, seven = (given(hosting, str(n), x=np.ones(n, np.float32)) for n in (8, 7))

    assert hosting.verify(engine, inputs=seven).ok
    with pytest.raises(BackendError, match=r"verify\.inputs gives"):
        hosting.verify(engine, inputs=eight)
    assert hosting.verify(engine, inputs=eight, if_impossible="publish").ok is None


@pytest.mark.parametrize("dtype", ["BOOL", "I32", "U8"])
def test_outputs_of_every_kind_are_compared(hosting: Hosting, tmp_path: Path, dtype: str) -> None:
    nodes = [onnx.helper.make_node("Mul", ["x", "w"], ["m"])]
    nodes.append(onnx.helper.make_node("Cast", ["m"], ["y"], to=ONNX_TYPES[dtype]))
    network = network_of(
        tmp_path / "net.onnx", nodes, {"w": ("F32", (1,))}, (InputSpec("x", "F32", ("n", 4)),), {"y": dtype}
    )
    weights = {"w": np.array([9.0], np.float32)}
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "w.safetensors", weights)))
    assert hosting.verify(engine).ok
    path = given(hosting, "x", x=np.ones((1, 4), np.float32))
    wrong = given(hosting, "y", y=np.zeros((1, 4), numpy_dtype(dtype)))
    assert not hosting.verify(engine, inputs=path, expected=wrong).ok


def test_transformed_weights_are_verified(hosting: Hosting, tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx")
    half = {name: value.astype(np.float16) for name, value in network.weights(1).items()}
    transforms = {name: (Cast("F32"),) for name in half}
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", half), transforms))

    assert hosting.verify(engine).ok


def test_a_reference_serves_every_weight_version_of_a_definition(
    hosting: Hosting, engine: EngineFile, tmp_path: Path
) -> None:
    network = attention(tmp_path / "same.onnx")
    tensors = {one.name: one.tensors[0] for one in engine.parameters}
    changed = checkpoint(tmp_path / "b.safetensors", {"v.bias": np.ones(16, np.float32)})
    _, refitted = hosting.refit(network, engine, bound(network, tensors | changed))

    first, second, third = (hosting.verify(one) for one in (engine, refitted, engine))

    assert first.ok
    assert second.ok
    assert first.outputs == third.outputs != second.outputs


def test_neither_engine_nor_reference_holds_its_weights_widened_all_at_once(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "half.onnx", "F16", width=2048, depth=12)
    weights = {name: np.full(shape, 1e-4, np.float16) for name, (_, shape) in network.parameters.items()}
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", weights)))
    process = Path(f"/proc/{hosting.host.pid}")
    (process / "clear_refs").write_text("5")  # the peak starts anew from the present
    before = status_bytes((process / "status").read_text(), "VmRSS")

    assert hosting.verify(engine).ok

    stored = sum(one.tensors[0].nbytes for one in engine.parameters)
    mapped, widened = 2 * stored, 2 * stored  # both of them map the file
    assert status_bytes((process / "status").read_text(), "VmHWM") - before < mapped + widened // 4


def test_fixed_inputs_are_the_same_everywhere() -> None:
    inputs = (
        InputSpec("ids", "I64", ("batch", "sequence"), 100),
        InputSpec("mask", "I64", ("batch", "sequence")),
        InputSpec("image", "F16", ("batch", 3, 4, 4)),
        InputSpec("flag", "BOOL", (1,)),
    )
    arrays = fixed_inputs(inputs, ())

    assert digest_of(arrays) == "sha256:ce0a9aa64c7cd46cb16f9428d3bfd24d86c59229a219e54a8f6f9eacf0994e92"
    assert arrays["ids"].shape == arrays["mask"].shape == (2, 16)
    assert 0 <= arrays["ids"].min() <= arrays["ids"].max() < 100
    assert len(np.unique(arrays["ids"])) > 5
    assert (arrays["mask"] == 1).all()
    assert arrays["image"].dtype == np.float16
    assert arrays["flag"].all()


def test_fixed_inputs_take_the_shapes_of_the_first_profile() -> None:
    profile = {"ids": Range((1, 1), (3, 5), (4, 8))}
    assert fixed_inputs((InputSpec("ids", "I64", ("b", "s"), 9),), (profile,))["ids"].shape == (3, 5)


def test_fixed_inputs_take_the_shapes_given_for_them() -> None:
    inputs = (InputSpec("ids", "I64", ("b", "s"), 9), InputSpec("mask", "I64", ("b", "s")))
    arrays = fixed_inputs(inputs, (), {"ids": (1, 7)})
    assert (arrays["ids"].shape, arrays["mask"].shape) == ((1, 7), (2, 16))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "I16"])
def test_nan_and_infinity_are_found_wherever_they_are(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    values = np.array([[0.0, -0.0], [1.5, -2.0]]).astype(kind)
    assert is_finite(values)
    assert is_finite(values[:0])
    if dtype == "I16":
        return
    largest = ml_dtypes.finfo(kind).max  # type: ignore[no-untyped-call]
    values[1] = largest, -largest
    assert is_finite(values)
    bad = [np.nan, -np.nan] if dtype == "F8_E4M3" else [np.nan, -np.nan, np.inf, -np.inf]  # it has no infinity
    for value in bad:
        for place in np.ndindex(values.shape):
            other = values.copy()
            other[place] = np.array(value).astype(kind)
            assert not is_finite(other), (value, place)
            assert not is_finite(other.T)


def test_differences_are_computed_in_float64() -> None:
    a = np.array([3.0, 4.0], np.float16)
    one = difference(a, np.array([3.0, 0.0], np.float16))
    assert (one.max_abs, one.relative_l2, one.cosine) == (4.0, 4 / 3, 0.6)

    large = np.full(4, 60000, np.float16)  # its squares do not fit in float16
    assert difference(large, -large) == OutputDifference(120000.0, 2.0, -1.0, finite=True)


@pytest.mark.parametrize(
    ("actual", "expected", "fault"),
    [
        ([1.0, 2.0], [1.0, 2.0], ""),
        ([0.0, 0.0], [0.0, 0.0], ""),
        ([1e-8, 0.0], [0.0, 0.0], ""),
        ([1.0, 0.0], [0.0, 0.0], "differs by 1.0 from the zeros that are expected, 1e-06 is allowed"),
        ([1.0, 2.1], [1.0, 2.0], "relative L2"),
        ([-1.0, -2.0], [1.0, 2.0], "relative L2"),
        ([np.inf, 2.0], [np.inf, 2.0], ""),
        ([np.nan, 2.0], [-np.nan, 2.0], ""),
        ([np.inf, 2.0], [np.inf, 2.1], "relative L2"),
        ([np.inf, 2.0], [-np.inf, 2.0], "at 1 places and not as expected"),
        ([np.inf, 2.0], [np.nan, 2.0], "not as expected"),
        ([np.inf, 2.0], [1.0, 2.0], "not as expected"),
        ([1.0, 2.0], [1.0, np.nan], "not as expected"),
        ([], [], ""),
    ],
)
def test_what_is_out_of_tolerance(actual: list[float], expected: list[float], fault: str) -> None:
    found = fault_of("y", difference(np.array(actual, np.float32), np.array(expected, np.float32)), F32)
    assert fault in found
    assert bool(fault) == bool(found)


def test_a_similar_length_in_another_direction_is_out_of_tolerance() -> None:
    one = OutputDifference(max_abs=1.0, relative_l2=1e-6, cosine=0.9, finite=True)
    assert "cosine 0.9" in fault_of("y", one, F32)


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(BackendError, match="outputs_differ"):
        difference(np.zeros((2, 1)), np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, "F32"),
        ({"precision": "definition", "tf32": False}, "F32"),
        ({"precision": "fp16"}, "F16"),
        ({"tf32": True}, "F16"),
    ],
)
def test_options_that_allow_a_lower_precision_set_the_tolerance(options: dict[str, object], dtype: str) -> None:
    assert tolerance_of((), options).dtype == dtype


def test_the_tolerance_of_an_engine_goes_by_its_options(hosting: Hosting, engine: EngineFile) -> None:
    assert hosting.verify(replace(engine, options={"precision": "fp16"})).tolerance["dtype"] == "F16"


def test_what_is_quantised_may_be_a_step_off_at_many_places(hosting: Hosting, tmp_path: Path) -> None:
    """The engine multiplies integers, the reference what they stand for, and both round each value again."""
    network = quantised(tmp_path / "quantised.onnx")
    weights = {name: value * np.float32(0.3) for name, value in network.weights(1).items()}
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", weights)))
    found = hosting.verify(engine)
    assert found.ok, found.detail
    assert found.tolerance["dtype"] == "I8"
    assert (found.outputs["y"].relative_l2 or 0) > F32.relative_l2

    assert not hosting.verify(negated(engine, tmp_path / "other.onnx")).ok


def test_a_graph_that_only_stores_quantised_weights_is_as_exact_as_any() -> None:
    weight_only = [onnx.helper.make_node("QuantizeLinear", ["w", "s"], ["q"])]
    computed = [onnx.helper.make_node("QuantizeLinear", ["x", "s"], ["q"])]
    w = onnx.TensorProto(name="w")
    assert [quantises(onnx.helper.make_graph(one, "g", [], [], [w])) for one in (weight_only, computed)] == [
        False,
        True,
    ]


def test_the_lowest_precision_sets_the_tolerance(hosting: Hosting, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Cast", ["h"], ["f"], to=onnx.TensorProto.FLOAT)]
    nodes += [onnx.helper.make_node("Add", ["f", "w"], ["s"]), onnx.helper.make_node("Add", ["s", "x"], ["y"])]
    inputs = (InputSpec("x", "F32", ("n",)),)
    parameters: dict[str, tuple[str, tuple[int, ...]]] = {"h": ("BF16", (1,)), "w": ("F32", (1,))}
    network = network_of(tmp_path / "definition.onnx", nodes, parameters, inputs, {"y": "F32"})
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))

    assert hosting.verify(engine).tolerance["dtype"] == "BF16"


def test_of_the_definitions_run_as_reference_those_used_last_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "KEPT_REFERENCES", 2)
    definitions = [str(perceptron(tmp_path / f"{width}.onnx", width=width).path) for width in (8, 16, 32)]
    first, second, third = definitions
    references = References(ParameterFiles(tmp_path), Costs(no_limit))
    opened = {one: references._session(one) for one in (first, second)}

    references._session(first)
    references._session(third)

    assert references._session(first) is opened[first]
    assert references._session(second) is not opened[second]


def test_a_definition_whose_file_became_another_one_is_opened_anew(tmp_path: Path) -> None:
    definition = str(perceptron(tmp_path / "one.onnx", width=8).path)
    references = References(ParameterFiles(tmp_path), Costs(no_limit))
    opened = references._session(definition)

    assert references._session(definition) is opened

    perceptron(tmp_path / "one.onnx", width=16)

    assert references._session(definition) is not opened


def test_an_engine_that_is_only_looked_at_for_nan_runs_once(
    engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, runs = Engines("cpu", 2**30, tmp_path / "scratch", lambda _message: None), []
    run = OnnxruntimeEngine.run

    def counted(self: OnnxruntimeEngine, inputs: dict[str, Array]) -> dict[str, Array]:
        runs.append(self)
        return run(self, inputs)

    monkeypatch.setattr(OnnxruntimeEngine, "run", counted)

    verified = engines.do(Verify(engine, Check("finite")))

    assert isinstance(verified, Verified)
    assert verified.ok
    assert len(runs) == 1


def probabilities(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)


def test_probabilities_are_compared_by_their_logarithms_as_well() -> None:
    """The largest one is certain in both, and the others differ by far less than `max_abs`."""
    logits = np.linspace(-20, 0, 9)
    logits[-1] = 30
    right, wrong = probabilities(logits), probabilities(logits * np.where(logits > 0, 1, 1.01))
    plain, logarithmic = Comparison(F32), Comparison(F32, frozenset({"y"}))
    assert plain.fault("y", plain.difference("y", wrong, right)) == ""
    assert "logarithms of output y" in logarithmic.fault("y", logarithmic.difference("y", wrong, right))
    assert logarithmic.fault("y", logarithmic.difference("y", np.nextafter(right, np.float32(0)), right)) == ""
    assert logarithmic.difference("x", wrong, right).logarithm is None


def test_probabilities_that_are_too_small_for_their_dtype_have_no_logarithm() -> None:
    half = Comparison(tolerance_of((), {"precision": "fp16"}), frozenset({"y"}))
    found = half.difference("y", np.array([0, 1], np.float32), np.array([1e-5, 1], np.float32))
    assert found.logarithm == 0
    rounded = Comparison(tolerance_of((), {}, is_quantised=True), frozenset({"y"}))
    assert rounded.difference("y", np.ones(1, np.float32), np.ones(1, np.float32)).logarithm is None
    none = half.difference("y", np.zeros(1, np.float32), np.full(1, 1e-5, np.float32))
    assert none.logarithm is None


def test_a_probability_that_vanished_differs_by_a_number() -> None:
    double = Comparison(next(one for one in TOLERANCES if one.dtype == "F64"), frozenset({"y"}))
    found = double.difference("y", np.array([1.0, 0.0]), np.array([1.0, 1e-140]))
    assert found.logarithm is not None
    assert np.isfinite(found.logarithm)
    assert "logarithms of output y" in double.fault("y", found)


def test_numbers_whose_squares_exceed_doubles_are_told_apart() -> None:
    right = np.array([1e200, -1e200])
    wrong = difference(right * [2, 1], right)
    assert wrong.max_abs == 1e200
    assert wrong.relative_l2 == pytest.approx(2**-0.5)
    assert wrong.cosine == pytest.approx(3 / 10**0.5)
    assert "relative L2" in fault_of("y", wrong, F32)
    assert fault_of("y", difference(right * (1 + 1e-9), right), F32) == ""


def test_a_difference_that_the_client_allows_is_allowed_of_probabilities_too(hosting: Hosting, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node("Softmax", ["s"], ["y"])]
    x = InputSpec("x", "F32", ("n", 8))
    network = network_of(tmp_path / "p.onnx", nodes, {"w": ("F32", (8, 4))}, (x,), {"y": "F32"})
    weights = bound(network, checkpoint(tmp_path / "p.safetensors", network.weights(1)))
    _, engine = hosting.build(network, weights)
    assert hosting.verify(engine).outputs["y"].logarithm is not None
    assert hosting.verify(engine, tolerance={"max_abs": 0.01}).outputs["y"].logarithm is None


def test_a_softmax_is_known_in_other_shapes_and_written_out() -> None:
    written = [
        helper.make_node("Exp", ["s"], ["e"]),
        helper.make_node("ReduceSum", ["e"], ["t"]),
        helper.make_node("Expand", ["t", "shape"], ["b"]),
        helper.make_node("Div", ["e", "b"], ["written"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("Reshape", ["p", "shape"], ["shaped"]),
        helper.make_node("Div", ["e", "p"], ["ratio"]),
        helper.make_node("Sigmoid", ["s"], ["gate"]),
    ]
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in ("written", "shaped", "ratio", "gate", "s")]
    assert softmaxes(helper.make_graph(written, "g", [], outputs)) == {"written", "shaped"}
