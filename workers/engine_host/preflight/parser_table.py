"""A table of what the ONNX parser of some releases takes: a TOML file, held against the facts of a graph's nodes."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from workers.engine_host.normaliser.parser import Parser
from workers.engine_host.preflight.node_facts import NodeFacts
from workers.engine_host.preflight.verdict import MAX_NAMED, Finding

NARROWED = {"I64": "I32", "F64": "F32"}  # what a parser that lacks the left takes as the right


class Limit(BaseModel):
    """What some operators must be like; `words` says it. A limit that is not `certain` makes a node doubtful only.

    Each part that is given must hold. `dtypes` are those that the input at the position `input` may have, `refuses`
    those that it may not have, and `ranks` its ranks. `constant` and `zeros` are the positions of inputs that have to
    be constants, or constants of 0. There are at least `least_inputs` inputs and at most `outputs` outputs.
    `attribute` names an attribute that, if the node has it, has one of `values`, no text `without` in it, or only ones
    (`ones`). If the input at `computed` is computed, the node has to have the attribute `needs`. Without any part,
    every node of the operators is against the limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operators: tuple[str, ...]
    words: str
    certain: bool = True
    input: int = 0
    dtypes: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    constant: int | None = None
    zeros: int | None = None
    least_inputs: int = 0
    outputs: int | None = None
    attribute: str = ""
    values: tuple[Any, ...] = ()
    without: str = ""
    ones: bool = False
    computed: int | None = None
    needs: str = ""

    @property
    def attributes(self) -> frozenset[str]:
        """The attributes that it looks at."""
        return frozenset({self.attribute, self.needs} - {""})

    def allows(self, node: NodeFacts) -> bool:
        """Whether a node of one of the operators is as it must be. What is unknown of the node is taken to fit."""
        if self.model_fields_set <= {"operators", "words", "certain"}:
            return False
        return self._allows_inputs(node) and self._allows_attributes(node)

    def _allows_inputs(self, node: NodeFacts) -> bool:
        if len(node.inputs) < self.least_inputs or (self.outputs is not None and len(node.outputs) > self.outputs):
            return False
        if self.constant is not None and node.input(self.constant).origin in {"computed", "input"}:
            return False
        if self.zeros is not None and node.input(self.zeros).origin == "constant" and not node.input(self.zeros).zero:
            return False
        value = node.input(self.input)
        return self._allows_dtype(value.dtype) and (not self.ranks or value.rank is None or value.rank in self.ranks)

    def _allows_dtype(self, dtype: str | None) -> bool:
        return dtype is None or (dtype not in self.refuses and (not self.dtypes or dtype in self.dtypes))

    def _allows_attributes(self, node: NodeFacts) -> bool:
        if self.computed is not None and node.input(self.computed).origin == "computed":
            return node.attribute(self.needs) is not None
        value = node.attribute(self.attribute)
        if value is None:
            return True
        if self.without and self.without in value:
            return False
        return (not self.values or value in self.values) and not (self.ones and set(value) - {1})


class Taken(BaseModel):
    """Operators, and the dtypes that the source names for their first input: any if there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtypes: frozenset[str]
    operators: frozenset[str]


class ParserTable(BaseModel):
    """What one family of releases takes.

    `releases` are the beginnings of the versions that it is about: "10.1" is that of "10.1.0", not of "10.10". `opset`
    is the newest that the parser knows. `dtypes` are those that any value may have, by the safetensors name or ONNX's.
    `lacks` are operators that the parser does not know, and `takes` those that it knows. If the table is `complete`, an
    operator that is in neither is refused. If types are no more than hints, it is not `strongly_typed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    library: str
    releases: tuple[str, ...]
    opset: int
    complete: bool
    strongly_typed: bool
    dtypes: frozenset[str]
    lacks: frozenset[str]
    takes: tuple[Taken, ...]
    limits: tuple[Limit, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "ParserTable":
        """Read a file; raises ValueError if it is no table."""
        return cls(name=path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))

    @cached_property
    def operators(self) -> Mapping[str, frozenset[str]]:
        """The dtypes that are named for the first input of each operator that is taken."""
        return {name: group.dtypes for group in self.takes for name in group.operators}

    @cached_property
    def parser(self) -> Parser:
        """What graphs are normalised for."""
        single = any("If" in limit.operators and limit.outputs == 1 for limit in self.limits)
        quantised = [one.dtypes for one in self.limits if "DequantizeLinear" in one.operators and one.dtypes]
        of_i32 = all("I32" in dtypes for dtypes in quantised)
        return Parser(self.opset, self.lacks, single_branches=single, dequantises_i32=of_i32)

    def fits(self, version: str) -> int:
        """Return how many numbers of a version the table names, 0 if it is about others."""
        named = [one.split(".") for one in self.releases]
        return max((len(one) for one in named if version.split(".")[: len(one)] == one), default=0)

    @cached_property
    def attributes(self) -> frozenset[str]:
        """The attributes that its limits look at."""
        return frozenset().union(*(one.attributes for one in self.limits))

    def judge(self, nodes: Iterable[tuple[str, NodeFacts]]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
        """Return what is refused, and what is doubtful."""
        found: dict[bool, dict[tuple[str, str], list[str]]] = {True: {}, False: {}}
        for name, node in nodes:
            for certain, reason in dict.fromkeys(self._against(node)):
                found[certain].setdefault((_title(node), reason), []).append(name)
        refused, doubtful = (
            tuple(Finding(*key, len(names), tuple(names[:MAX_NAMED])) for key, names in found[certain].items())
            for certain in (True, False)
        )
        return refused, doubtful

    def _against(self, node: NodeFacts) -> Iterator[tuple[bool, str]]:
        """Yield each reason against a node, and whether it is certain."""
        if node.operator in self.lacks and not node.domain:
            yield True, "the parser does not know this operator"
            return
        if node.operator not in self.operators:
            is_plugin = "TRT" in node.operator.split("_")
            yield self.complete and not is_plugin, "the parser does not know this operator, unless a plugin brings it"
            return
        strange = {one.dtype for one in node.inputs} | set(node.outputs)
        for dtype in sorted(one for one in strange if one is not None and one not in self.dtypes):
            yield True, f"there is no {dtype} in this release"
        first = node.input(0).dtype
        if first is not None and first in self.dtypes and not self._is_named(node.operator, first):
            yield False, f"{first} is not among the types that are documented for it"
        for limit in self.limits:
            if node.operator in limit.operators and not limit.allows(node):
                yield limit.certain, limit.words

    def _is_named(self, operator: str, dtype: str) -> bool:
        named = self.operators[operator]
        return not named or bool({dtype, NARROWED.get(dtype)} & named)


def _title(node: NodeFacts) -> str:
    return f"{node.domain}.{node.operator}" if node.domain else node.operator
