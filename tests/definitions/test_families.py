"""What holds for every family; tests/golden/families has a small config of each, and its definitions' digests."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from app.bindings.binding import bind
from app.bindings.rules import parse_rules
from app.definitions.canonical_graph import canonical_bytes
from app.definitions.family import FamilyGraph, Precision, family_names, load_family
from app.definitions.interface import read_interface
from app.definitions.rejection import Rejected
from app.weights.manifest import TensorEntry

GOLDEN = Path(__file__).parents[1] / "golden" / "families"

pytestmark = [
    pytest.mark.parametrize("family", family_names()),
    pytest.mark.parametrize("precision", ["fp32", "fp16"]),
]


def golden(family: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / f"{family}.json").read_text())
    return content


def built(family: str, precision: Precision) -> FamilyGraph:
    return load_family(family).build(golden(family)["config"], precision)


def test_its_graph_is_the_one_that_existing_definitions_have(family: str, precision: Precision) -> None:
    graph = canonical_bytes(built(family, precision).model)
    assert f"sha256:{hashlib.sha256(graph).hexdigest()}" == golden(family)["digests"][precision]


def test_a_checkpoint_in_f32_binds_by_its_own_rules(family: str, precision: Precision) -> None:
    made = built(family, precision)
    parameters = read_interface(made.model).parameters
    tensors = {one.name: TensorEntry(one.name, "F32", one.shape, "0" * 64, "", 0, 0) for one in parameters}
    report = bind(parameters, tensors, (), parse_rules(list(made.rules)))
    assert report.problems == ()
    assert len(report.bindings) == len(parameters) > 0


def test_it_says_which_keys_of_the_config_are_in_force(family: str, precision: Precision) -> None:
    made = built(family, precision)
    assert golden(family)["config"].items() <= made.config.items()
    again = load_family(family).build(made.config, precision)
    assert canonical_bytes(again.model) == canonical_bytes(made.model)


def test_its_outputs_are_f32_in_either_precision(family: str, precision: Precision) -> None:
    assert {one.dtype for one in read_interface(built(family, precision).model).outputs} == {"F32"}


def test_a_config_of_another_model_type_is_rejected(family: str, precision: Precision) -> None:
    with pytest.raises(Rejected) as rejected:
        load_family(family).build({**golden(family)["config"], "model_type": "other"}, precision)
    assert [error.pointer for error in rejected.value.errors] == ["/config/model_type"]
