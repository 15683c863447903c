"""Tables of parsers, limit by limit."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workers.engine_host.backends.tensorrt.parser_tables import FOLDER, parser_table, parser_tables
from workers.engine_host.preflight.node_facts import NodeFacts, Value
from workers.engine_host.preflight.parser_table import Limit, ParserTable

F32 = Value("computed", "F32", 4)


def node(operator: str, *inputs: Value, outputs: int = 1, domain: str = "", **attributes: Any) -> NodeFacts:  # noqa: ANN401 - as ONNX has them
    return NodeFacts(operator, domain, inputs or (F32,), ("F32",) * outputs, tuple(sorted(attributes.items())))


@pytest.mark.parametrize(
    ("limit", "fits", "strange"),
    [
        ({"dtypes": ["F32"]}, node("X"), node("X", Value("computed", "I32"))),
        ({"dtypes": ["F32"]}, node("X", Value("computed")), node("X", Value("computed", "I32"))),
        ({"input": 1, "refuses": ["I32"]}, node("X", Value("input", "I32")), node("X", F32, Value("input", "I32"))),
        ({"ranks": [4]}, node("X"), node("X", Value("computed", "F32", 6))),
        ({"constant": 1}, node("X", F32, Value("constant")), node("X", F32, Value("computed"))),
        ({"constant": 1}, node("X"), node("X", F32, Value("input"))),
        ({"zeros": 1}, node("X", F32, Value("constant", zero=True)), node("X", F32, Value("constant"))),
        ({"zeros": 1}, node("X", F32, Value("parameter")), node("X", F32, Value("constant"))),
        ({"least_inputs": 2}, node("X", F32, F32), node("X")),
        ({"outputs": 1}, node("X"), node("X", outputs=2)),
        ({"attribute": "mode", "values": ["linear"]}, node("X"), node("X", mode="cubic")),
        ({"attribute": "mode", "values": ["linear"]}, node("X", mode="linear"), node("X", mode="cubic")),
        ({"attribute": "equation", "without": "..."}, node("X", equation="ij"), node("X", equation="...j")),
        ({"attribute": "dilations", "ones": True}, node("X", dilations=(1, 1)), node("X", dilations=(1, 2))),
        ({"computed": 1, "needs": "k"}, node("X", F32, F32, k=(1,)), node("X", F32, F32)),
        ({"computed": 1, "needs": "k"}, node("X", F32, Value("parameter")), node("X", F32, F32)),
        ({"certain": False}, node("Y"), node("X")),
    ],
)
def test_a_limit_is_held_by_what_fits_and_by_nothing_else(
    limit: dict[str, Any], fits: NodeFacts, strange: NodeFacts
) -> None:
    table = table_with(limits=[{"operators": ["X"], "words": "no", **limit}])
    refused, doubtful = table.judge([("good", fits), ("bad", strange)])
    (found,) = refused + doubtful
    assert (found.operator, found.reason, found.count, found.nodes) == ("X", "no", 1, ("bad",))
    assert bool(refused) == limit.get("certain", True)


def table_with(**changes: Any) -> ParserTable:  # noqa: ANN401 - fields of the table
    row = {
        "name": "test",
        "library": "tensorrt",
        "releases": ["1"],
        "opset": 17,
        "complete": True,
        "strongly_typed": True,
        "dtypes": ["F32", "I32", "I64"],
        "lacks": ["Z"],
        "takes": [{"dtypes": ["F32", "I32"], "operators": ["X", "Y"]}],
    }
    return ParserTable.model_validate(row | changes)


@pytest.mark.parametrize(
    ("strange", "refused", "doubtful"),
    [
        (node("X"), 0, 0),
        (node("Z"), 1, 0),  # it says so
        (node("W"), 1, 0),  # it is complete
        (node("Deform_TRT"), 0, 1),  # a plugin may bring it
        (node("Z", domain="com.microsoft"), 1, 0),
        (node("X", Value("computed", "BF16")), 1, 0),  # a type that there is not
        (node("X", Value("computed", "I64")), 0, 0),  # taken as I32
        (node("X", F32, Value("computed", "STRING")), 1, 0),
    ],
)
def test_an_operator_and_its_types_are_looked_up(strange: NodeFacts, refused: int, doubtful: int) -> None:
    found = table_with().judge([("n", strange)])
    assert [len(one) for one in found] == [refused, doubtful]


def test_what_is_not_documented_is_doubtful_only() -> None:
    table = table_with(takes=[{"dtypes": ["F32"], "operators": ["X"]}])
    refused, doubtful = table.judge([("n", node("X", Value("computed", "I32")))])
    assert not refused
    assert "I32" in doubtful[0].reason


def test_a_table_that_is_not_complete_refuses_only_what_it_names() -> None:
    refused, doubtful = table_with(complete=False).judge([("w", node("W")), ("z", node("Z"))])
    assert [one.operator for one in refused] == ["Z"]
    assert [one.operator for one in doubtful] == ["W"]


def test_a_misspelt_limit_is_no_table() -> None:
    with pytest.raises(ValidationError):
        Limit.model_validate({"operators": ["X"], "words": "no", "dtype": ["F32"]})


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_no_table_contradicts_itself(path: Path) -> None:
    table = ParserTable.read(path)
    assert not table.lacks & table.operators.keys()
    assert sum(len(one.operators) for one in table.takes) == len(table.operators)
    assert {name for limit in table.limits for name in limit.operators} <= table.operators.keys()
    assert frozenset().union(*(one.dtypes for one in table.takes)) <= table.dtypes


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("8.6.1", "tensorrt-8.6"),
        ("9.3.0.post12", "tensorrt-9"),
        ("10.1.0", "tensorrt-10.0"),
        ("10.10.0", "tensorrt-later"),
        ("11.4", "tensorrt-later"),
        ("8.5.3", None),
    ],
)
def test_a_version_has_the_table_that_names_most_of_it(version: str, name: str | None) -> None:
    table = parser_table("tensorrt", version)
    assert (table.name if table else None) == name


def test_what_no_release_before_or_after_knows_no_release_between_knows() -> None:
    lacks = {one.name: one.lacks for one in parser_tables()}
    assert lacks["tensorrt-later"] == lacks["tensorrt-10.0"] & lacks["tensorrt_rtx-1"]
