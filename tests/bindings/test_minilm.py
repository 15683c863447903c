"""Binding with the real all-MiniLM-L6-v2 checkpoint."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from app.bindings.binding import bind
from app.bindings.rules import parse_rules
from app.definitions.parameter import Parameter
from app.weights.checkpoint import TensorSlot
from app.weights.dtypes import numpy_dtype, view
from app.weights.formats.safetensors import read_slots


@pytest.fixture
def checkpoint(minilm: Path) -> mmap.mmap:
    with (minilm / "model.safetensors").open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.fixture
def slots(checkpoint: mmap.mmap) -> dict[str, TensorSlot]:
    slots = read_slots(lambda offset, length: checkpoint[offset : offset + length], len(checkpoint))
    return {slot.name: slot for slot in slots}


def test_every_parameter_reads_the_mapped_file_itself(checkpoint: mmap.mmap, slots: dict[str, TensorSlot]) -> None:
    wanted = [Parameter(slot.name, slot.shape, slot.dtype) for slot in slots.values()]
    report = bind(wanted, slots, ())
    assert report.ok
    mapped = np.frombuffer(checkpoint, np.uint8)
    for binding in report.bindings:
        (slot,) = (slots[name] for name in binding.tensors)
        value = binding.apply([view(checkpoint, slot.dtype, slot.shape, slot.offset)])
        assert np.shares_memory(value, mapped)


def test_a_definition_in_half_precision_with_other_names_and_turned_matrices(
    minilm: Path, checkpoint: mmap.mmap, slots: dict[str, TensorSlot]
) -> None:
    rules = parse_rules(
        [
            {
                "parameter": r"block\.(\d+)\.up",
                "tensors": [r"encoder.layer.\1.intermediate.dense.weight"],
                "transforms": [{"op": "transpose", "perm": [1, 0]}, {"op": "cast", "dtype": "BF16"}],
            },
            {
                "parameter": r"block\.(?P<n>\d+)\.qkv",
                "tensors": [rf"encoder.layer.\g<n>.attention.self.{part}.weight" for part in ("query", "key", "value")],
                "transforms": [{"op": "concat", "axis": 0}],
            },
            {"ignore": ".*"},
        ]
    )
    wanted = [Parameter("block.5.up", (384, 1536), "BF16"), Parameter("block.0.qkv", (1152, 384), "F32")]
    report = bind(wanted, slots, rules)
    assert report.ok, report.problems
    values = {}
    for binding in report.bindings:
        sources = [slots[name] for name in binding.tensors]
        values[binding.parameter] = binding.apply(
            [view(checkpoint, slot.dtype, slot.shape, slot.offset) for slot in sources]
        )
    real = load_file(minilm / "model.safetensors")
    expected = real["encoder.layer.5.intermediate.dense.weight"].T.astype(numpy_dtype("BF16"))
    np.testing.assert_array_equal(values["block.5.up"], expected)
    attention = "encoder.layer.0.attention.self"
    fused = np.concatenate([real[f"{attention}.{part}.weight"] for part in ("query", "key", "value")])
    np.testing.assert_array_equal(values["block.0.qkv"], fused)


def test_names_under_another_prefix_are_answered_with_one_rule(slots: dict[str, TensorSlot]) -> None:
    wanted = [Parameter(f"bert.{slot.name}", slot.shape, slot.dtype) for slot in slots.values()]
    report = bind(wanted, slots, ())
    assert {problem.kind for problem in report.problems} == {"missing", "unexpected"}
    missing = [problem for problem in report.problems if problem.kind == "missing"]
    assert len(missing) == len(slots)
    assert all(r'{"parameter": "bert\\.(.+)", "tensors": ["\\1"]}' in problem.detail for problem in missing)
    assert bind(wanted, slots, parse_rules([{"parameter": r"bert\.(.*)", "tensors": [r"\1"]}])).ok
