"""Tensors in another shape than the parameters that they seem to be: said, and never bound by themselves."""

import json

import pytest

from app.bindings.binding import bind
from app.bindings.report import BindingReport
from app.bindings.rules import parse_rules
from app.definitions.parameter import Parameter
from tests.bindings.test_folded_norms import Tensor

Shapes = dict[str, tuple[int, ...]]


def report(parameters: Shapes, tensors: Shapes, *rules: object) -> BindingReport:
    wanted = [Parameter(name, shape, "F32") for name, shape in parameters.items()]
    return bind(wanted, {name: Tensor(name, shape) for name, shape in tensors.items()}, parse_rules(rules))


@pytest.mark.parametrize(("rows", "op"), [(16, "slice"), (8, "pad")])
def test_names_a_table_under_a_prefix_that_has_other_rows(rows: int, op: str) -> None:
    made = report({"embed.weight": (10, 6)}, {"model.embed.weight": (rows, 6)})
    assert made.proposed.proposals == ()
    assert f'"op": "{op}"' in made.proposed.unclear[0].detail
    assert all("model.embed.weight is embed.weight by its name" in one.detail for one in made.problems)


@pytest.mark.parametrize("fused", ["attn.qkv_proj.weight", "attn.in_proj_weight"])
def test_names_a_tensor_that_may_be_several_parameters_in_one(fused: str) -> None:
    made = report({f"attn.{part}.weight": (4, 6) for part in ("q", "k", "v")}, {fused: (12, 6)})
    assert made.proposed.proposals == ()
    assert '"sections": 3' in made.proposed.unclear[0].detail
    assert not any('"ignore"' in one.detail for one in made.problems)


@pytest.mark.parametrize(("rows", "name"), [(4, "onnx::MatMul_"), (6, "onnx::MatMul_"), (4, "val_")])
def test_names_the_transposition_of_parts_whose_parameters_the_exporter_transposed(rows: int, name: str) -> None:
    exported: Shapes = {f"{name}{number}": (6, rows) for number in (7, 8, 9)}
    (unclear,) = report(exported, {"attn.in_proj_weight": (3 * rows, 6)}).proposed.unclear
    split, turn = {"op": "split", "axis": 0, "sections": 3, "index": 0}, {"op": "transpose", "perm": [1, 0]}
    assert f'"transforms": {json.dumps([split, turn])}' in unclear.detail
    rules = [
        {"parameter": name, "tensors": ["attn.in_proj_weight"], "transforms": [{**split, "index": at}, turn]}
        for at, name in enumerate(exported)
    ]
    assert report(exported, {"attn.in_proj_weight": (3 * rows, 6)}, *rules).ok


def test_leaves_open_how_square_parts_lie() -> None:
    made = report({f"val_{number}": (6, 6) for number in (7, 8, 9)}, {"attn.in_proj_weight": (18, 6)})
    (unclear,) = made.proposed.unclear
    assert "Nor does it tell whether the parts lie transposed" in unclear.detail


def test_says_nothing_of_a_shape_that_as_many_parameters_do_not_have() -> None:
    made = report({"q.weight": (4, 6), "k.weight": (4, 6)}, {"other": (12, 6)})
    assert made.proposed.unclear == ()
