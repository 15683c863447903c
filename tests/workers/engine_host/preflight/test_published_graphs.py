"""The table of TensorRT 8.6 against what the card said of 43 published graphs: no more is refused, and no less.

The graphs are kept as the facts of their nodes (`benchmarks.published_facts`).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.engine_host.backends.tensorrt.parser_tables import parser_table
from workers.engine_host.preflight.node_facts import NodeFacts
from workers.engine_host.preflight.verdict import Finding

ROOT = Path(__file__).parents[4]
GRAPHS: dict[str, Any] = json.loads((ROOT / "tests/data/published_graphs.json").read_text())
OUTCOMES: list[dict[str, Any]] = json.loads((ROOT / "benchmarks/results/published-tensorrt.json").read_text())[
    "figures"
]["outcomes"]
# Words of the parser, and the operators that they are about.
CAUSES = {
    "only activation types allowed": {"DequantizeLinear"},
}
# What it refused before more was rewritten, and the operators: the transforms are multiplied out now, and a Conv names
# the shape of a computed kernel.
MENDED = {
    "Plugin not found": {"STFT", "DFT"},
    "misaligns with the input kernel shape": {"Conv"},
}
# The shapes of an LSTM inside a branch that is not decided before the build: a table knows operators, not shapes.
UNTOLD = "tensor volume exceeds"


def refused(name: str) -> tuple[Finding, ...]:
    table = parser_table("tensorrt", "8.6.1")
    assert table is not None
    nodes = ((row["operator"], NodeFacts.from_json(row)) for row in GRAPHS[name]["nodes"])
    return table.judge(nodes)[0]


def cause(outcome: dict[str, Any]) -> set[str]:
    """Return the operators of which the card's parser refuses one; none if it refused none, or the cause is mended."""
    text = outcome["refused"]
    if not text.startswith("graph_refused") or UNTOLD in text or any(words in text for words in MENDED):
        return set()
    return next(operators for words, operators in CAUSES.items() if words in text)


def test_every_graph_that_the_card_was_given_is_here() -> None:
    assert {one["name"] for one in OUTCOMES} <= GRAPHS.keys()
    assert len(OUTCOMES) == 43


@pytest.mark.parametrize("outcome", OUTCOMES, ids=[one["name"] for one in OUTCOMES])
def test_the_table_refuses_what_the_card_refused(outcome: dict[str, Any]) -> None:
    wanted = cause(outcome)
    found = {one.operator for one in refused(outcome["name"])}
    assert bool(found & wanted) == bool(found) == bool(wanted)


def test_what_is_rewritten_since_then_was_refused_for_what_the_table_says() -> None:
    table = parser_table("tensorrt", "8.6.1")
    assert table is not None
    limited = {name for limit in table.limits for name in limit.operators}
    for words, operators in MENDED.items():
        assert any(words in outcome["refused"] for outcome in OUTCOMES)
        assert operators <= table.lacks | limited


def test_some_of_each_are_among_them() -> None:
    causes = [cause(outcome) for outcome in OUTCOMES]
    assert [sum(operators == one for one in causes) for operators in CAUSES.values()] == [1]
    assert sum(not outcome["refused"] for outcome in OUTCOMES) == 28
