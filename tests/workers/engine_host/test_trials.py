"""Inputs that are made up to verify a definition with."""

from typing import Any

import numpy as np
import pytest
from onnx import helper

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from tests.workers.hosting import Hosting
from tests.workers.networks import bound, checkpoint, network_of
from workers.channel.messages import BackendError, Verified
from workers.engine_host.run_inputs import fixed_inputs
from workers.engine_host.trials import MAX_ELEMENTS, SIDES, Trial, trials

Nodes = list[Any]
WEIGHT: dict[str, tuple[str, tuple[int, ...]]] = {"w": ("F32", (1,))}


def verified(
    hosting: Hosting,
    nodes: Nodes,
    inputs: tuple[InputSpec, ...],
    constants: dict[str, Any] | None = None,
    **check: Any,  # noqa: ANN401 - fields of Check
) -> Verified:
    """Build a network with one parameter "w" and an output "y", and verify it against the reference."""
    network = network_of(hosting.folder / "net.onnx", nodes, WEIGHT, inputs, {"y": "F32"}, constants)
    _, engine = hosting.build(network, bound(network, checkpoint(hosting.folder / "w.safetensors", network.weights(1))))
    return hosting.verify(engine, **check)


def shape_of(found: Verified, name: str) -> list[int]:
    assert found.ok, found.detail
    assert found.made_up is not None
    shape: list[int] = found.made_up["shapes"][name]
    return shape


def padded(pad: int) -> tuple[Nodes, dict[str, Any]]:
    """An audio model: reflection takes more samples than it adds."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], mode="reflect"),
        helper.make_node("Mul", ["p", "w"], ["y"]),
    ]
    return nodes, {"pads": np.array([0, 0, 0, pad], np.int64)}


@pytest.mark.parametrize(("pad", "length"), [(10, 16), (400, 512), (9_000, 16_000)])
def test_a_length_is_tried_until_the_definition_takes_it(hosting: Hosting, pad: int, length: int) -> None:
    nodes, constants = padded(pad)
    found = verified(hosting, nodes, (InputSpec("x", "F32", ("batch", "samples")),), constants)
    assert shape_of(found, "x") == [2, length]


def test_a_signal_without_a_batch_has_a_length_too(hosting: Hosting) -> None:
    nodes, _ = padded(400)
    found = verified(hosting, nodes, (InputSpec("x", "F32", ("samples",)),), {"pads": np.array([0, 400], np.int64)})
    assert shape_of(found, "x") == [512]


def test_a_length_that_is_the_sum_of_two_others_is_found(hosting: Hosting) -> None:
    """A decoder's mask covers what is cached and what is new."""
    nodes = [
        helper.make_node("Concat", ["past", "new"], ["all"], axis=1),
        helper.make_node("Mul", ["all", "mask"], ["m"]),
        helper.make_node("Mul", ["m", "w"], ["y"]),
    ]
    inputs = (
        InputSpec("new", "F32", ("batch", "seq")),
        InputSpec("mask", "F32", ("batch", "total")),
        InputSpec("past", "F32", ("batch", "before")),
    )
    assert shape_of(verified(hosting, nodes, inputs), "mask") == [2, 32]


def test_a_length_that_is_written_as_a_sum_is_that_sum() -> None:
    inputs = (InputSpec("past", "F32", ("batch", "past_len")), InputSpec("mask", "I64", ("batch", "past_len + 1")))
    assert next(trials(inputs, ())).shapes == {"past": (2, 16), "mask": (2, 17)}


def test_two_sizes_that_have_to_agree_do(hosting: Hosting) -> None:
    """One is the height of an image and the other the length of a row, so the first guess differs."""
    nodes = [helper.make_node("Mul", ["x", "row"], ["m"]), helper.make_node("Mul", ["m", "w"], ["y"])]
    inputs = (InputSpec("x", "F32", ("n", 3, 5, "width")), InputSpec("row", "F32", (1, "length")))
    found = verified(hosting, nodes, inputs)
    assert shape_of(found, "x")[3] == shape_of(found, "row")[1]


@pytest.mark.parametrize(
    ("shape", "operator", "constant", "taken"),
    [
        (("n", "c", "h", "w"), "Conv", (2, 3, 1, 1), [2, 3, 64, 64]),
        (("n", "frames", "k"), "MatMul", (80, 2), [2, 16, 80]),
    ],
)
def test_a_size_is_found_that_a_constant_asks_for(
    hosting: Hosting, shape: tuple[str, ...], operator: str, constant: tuple[int, ...], taken: list[int]
) -> None:
    """Channels or features that the exporter left open."""
    nodes = [helper.make_node(operator, ["x", "k"], ["m"]), helper.make_node("Mul", ["m", "w"], ["y"])]
    found = verified(hosting, nodes, (InputSpec("x", "F32", shape),), {"k": np.ones(constant, np.float32)})
    assert shape_of(found, "x") == taken


@pytest.mark.parametrize("side", [224, 640])
@pytest.mark.parametrize("channels", [3, "c"])
def test_sides_are_tried_that_image_networks_are_made_for(hosting: Hosting, side: int, channels: int | str) -> None:
    """A layer behind the flattened image takes one size only, though the exporter left it open."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "k"], ["m"]),
        helper.make_node("Mul", ["m", "w"], ["y"]),
    ]
    inputs = (InputSpec("x", "F32", ("n", channels, "height", "width")),)
    constant = np.ones((3 * (side // 16) ** 2, 2), np.float32)
    assert shape_of(verified(hosting, nodes, inputs, {"k": constant}), "x") == [1, 3, side, side]


def test_a_model_that_takes_one_at_a_time_is_given_one(hosting: Hosting) -> None:
    nodes = [helper.make_node("Reshape", ["x", "one"], ["r"]), helper.make_node("Mul", ["r", "w"], ["y"])]
    found = verified(hosting, nodes, (InputSpec("x", "F32", ("batch", 4)),), {"one": np.array([1, 4], np.int64)})
    assert shape_of(found, "x") == [1, 4]


def test_an_index_that_nothing_bounds_is_zero_if_one_is_too_many(hosting: Hosting) -> None:
    nodes = [helper.make_node("GatherND", ["x", "i"], ["g"]), helper.make_node("Mul", ["g", "w"], ["y"])]
    found = verified(hosting, nodes, (InputSpec("x", "F32", (1, 4)), InputSpec("i", "I64", (1, 1))))
    assert found.ok
    assert found.made_up is not None
    assert found.made_up["values"] == "zeros"


def test_values_are_positive_if_nothing_else_gives_a_number(hosting: Hosting) -> None:
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["r"], keepdims=0),
        helper.make_node("Log", ["r"], ["l"]),
        helper.make_node("Mul", ["l", "w"], ["y"]),
    ]
    found = verified(hosting, nodes, (InputSpec("x", "F32", (8, 8)),))
    assert found.ok
    assert found.made_up is not None
    assert found.made_up["values"] == "positive"


def test_a_length_is_the_longest_size_and_a_rate_what_is_usual() -> None:
    inputs = (
        InputSpec("features", "F32", ("batch", "frames", 80)),
        InputSpec("features_length", "I64", ("batch",)),
        InputSpec("sr", "I64", ()),
        InputSpec("position_ids", "I64", ("batch", "frames")),
        InputSpec("scoreThreshold", "F32", (1,)),
        InputSpec("gain", "F32", ()),
        InputSpec("attention_mask", "F32", ("batch", "frames")),
    )
    made = fixed_inputs(inputs, ())
    assert made["features_length"].tolist() == [16, 16]
    assert made["sr"] == 16_000
    assert made["position_ids"].tolist() == [list(range(16))] * 2
    assert made["scoreThreshold"] == [0.5]
    assert 0.5 <= made["gain"] < 1
    assert (made["attention_mask"] == 1).all()


def test_with_profiles_only_their_shapes_are_tried() -> None:
    inputs = (InputSpec("x", "F32", ("n", "length")),)
    profiles = ({"x": Range((1, 1), (2, 8), (4, 64))}, {"x": Range((1, 64), (1, 96), (1, 128))})
    tried = [trial.shapes["x"] for trial in trials(inputs, profiles) if trial.values == "normal"]
    assert tried == [(2, 8), (1, 96), (1, 1), (4, 64), (1, 64), (1, 128)]


def test_tokens_and_pixels_are_not_tried_by_the_thousand() -> None:
    inputs = (InputSpec("ids", "I64", ("batch", "sequence"), 100), InputSpec("image", "F32", ("n", 3, "h", "w")))
    for trial in trials(inputs, ()):
        assert max(trial.shapes["ids"]) <= 512
        assert max(trial.shapes["image"]) <= max(SIDES)
        assert sum(int(np.prod(shape)) for shape in trial.shapes.values()) <= MAX_ELEMENTS


def test_a_trial_survives_its_way_through_json() -> None:
    trial = Trial({"x": (2, 8), "y": ()}, "positive", 3)
    assert Trial.from_json(trial.to_json()) == trial


def test_what_no_guess_satisfies_is_no_fault_of_the_engine(hosting: Hosting) -> None:
    """It takes lengths of 77 only."""
    nodes = [helper.make_node("Reshape", ["x", "split"], ["r"]), helper.make_node("Mul", ["r", "w"], ["y"])]
    inputs, constants = (InputSpec("x", "F32", ("samples",)),), {"split": np.array([7, 11], np.int64)}
    with pytest.raises(BackendError) as caught:
        verified(hosting, nodes, inputs, constants)
    assert caught.value.code == "verification_impossible"
    for words in (
        "no fault of its own",
        "guess",
        "x [2]; x [1]; x [512]",
        '"profiles", such as [{"x":',
        '"verify": {"inputs"',
    ):
        assert words in caught.value.detail

    found = verified(hosting, nodes, inputs, constants, if_impossible="publish")
    assert found.ok is None
    assert "guess" in found.detail


def test_an_index_that_no_guess_satisfies_wants_inputs_and_not_profiles(hosting: Hosting) -> None:
    """It looks up i - 9000 in a table of 10."""
    nodes = [
        helper.make_node("Sub", ["i", "five"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["picked"]),
        helper.make_node("Mul", ["picked", "w"], ["y"]),
    ]
    inputs = (InputSpec("i", "I64", ("n",)),)
    constants = {"five": np.array([9000], np.int64), "table": np.ones((10,), np.float32)}
    with pytest.raises(BackendError) as caught:
        verified(hosting, nodes, inputs, constants)
    assert "Values are at fault, not sizes" in caught.value.detail
    assert "profiles" not in caught.value.detail
