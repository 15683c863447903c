"""What TensorRT makes of a graph, told from the tables of its parsers: neither a GPU nor TensorRT is needed."""

from collections.abc import Iterator, Mapping
from typing import Any

from onnx import ModelProto

from app.definitions.profiles import Profile, Range
from app.definitions.tensor_data import DTYPE_NAMES
from app.fleet.refit_patterns import RefitPatternError, RefitPatterns
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import LAYOUTS, Layout, lay_out
from workers.engine_host.backends.tensorrt.normalised import NormalisedLayout, normalised_layout
from workers.engine_host.backends.tensorrt.parser_tables import parser_table, parser_tables
from workers.engine_host.normaliser.parser import Parser
from workers.engine_host.preflight.node_facts import facts_of
from workers.engine_host.preflight.parser_table import ParserTable
from workers.engine_host.preflight.verdict import Finding, Question, Refittable, Verdict

Findings = tuple[Finding, ...]


def check_tensorrt(definition: ModelProto, question: Question) -> list[Verdict]:
    """Return a verdict for each version of TensorRT."""
    return _verdicts("tensorrt", definition, question)


def check_tensorrt_rtx(definition: ModelProto, question: Question) -> list[Verdict]:
    """Return a verdict for each version of TensorRT-RTX."""
    return _verdicts("tensorrt_rtx", definition, question)


def _verdicts(library: str, definition: ModelProto, question: Question) -> list[Verdict]:
    known = [one.releases[0] for one in parser_tables() if one.library == library]
    build = _Build(definition, question)
    return [build.verdict(version, parser_table(library, version)) for version in question.versions or known]


class _Build:
    """The build that is asked about; its graph is normalised once for parsers that are alike."""

    def __init__(self, definition: ModelProto, question: Question) -> None:
        self._definition = definition
        self._question = question
        self._packing = question.options.get("refit_layout", LAYOUTS[0])
        self._layout = lay_out(definition, self._packing)
        self._refittable = _refittable(definition, self._layout, question.options)
        self._normals: dict[Parser, NormalisedLayout] = {}

    def verdict(self, version: str, table: ParserTable | None) -> Verdict:
        """Judge by a table, and without one by none."""
        if table is None:
            unknown = Finding("any", "there is no table of what this version takes", 0, ())
            return self._said(version, "no table", self._definition, doubtful=(unknown,))
        source = f"table {table.name}"
        if not self._question.details and not self._judge(table, self._layout.model)[0]:
            return self._said(version, source, self._layout.model)  # rewrites only help
        if table.parser not in self._normals:
            self._normals[table.parser] = self._normalise(table.parser, self._question.profiles)
        normal = self._normals[table.parser]
        model = normal.layout.model
        refused, doubtful = self._judge(table, model)
        found = onnx_graph.opset_of(model)
        if found > table.opset:
            newer = f"the graph is of opset {found}, and this parser knows up to {table.opset}"
            doubtful += (Finding("any", newer, 0, ()),)
        kept = (f"the definition is compiled as it is: {normal.kept_because}",) if normal.kept_because else ()
        return self._said(
            version,
            source,
            model,
            refused=refused,
            doubtful=doubtful,
            rewrites=[one.to_json() | {"meaning": one.meaning} for one in normal.rewrites],
            notes=kept,
            remedies=tuple(self._remedies(table, refused)) if refused else (),
        )

    def _said(self, version: str, source: str, model: ModelProto, **more: Any) -> Verdict:  # noqa: ANN401 - of Verdict
        return Verdict(version, source, onnx_graph.all_operators(model.graph), self._refittable, **more)

    def _judge(self, table: ParserTable, model: ModelProto) -> tuple[Findings, Findings]:
        """Return what is refused, and what is doubtful."""
        refused, doubtful = table.judge(facts_of(model, table.attributes))
        return refused + tuple(_refused_ends(model, table, self._question.options)), doubtful

    def _normalise(self, parser: Parser, profiles: tuple[Profile, ...]) -> NormalisedLayout:
        return normalised_layout(self._definition, self._layout, profiles, refit_layout=self._packing, parser=parser)

    def _remedies(self, table: ParserTable, refused: Findings) -> Iterator[str]:
        if self._question.details and self._narrowed_is_taken(table):
            yield "Narrow the profiles to one exact shape: then the graph is taken, because more is computed before it."
        others = [one for one in parser_tables() if one is not table and all(_takes(one, each) for each in refused)]
        if others:
            names = ", ".join(f"{one.library} {one.releases[0]}" for one in others)
            yield f"Use a version whose parser knows these operators ({names})."
        yield "Export the model without these operators, or make the definition again with another opset."
        yield 'Use another backend: "onnxruntime" takes most of what ONNX has.'

    def _narrowed_is_taken(self, table: ParserTable) -> bool:
        """Whether the graph is taken if the first profile's best shapes are its only ones."""
        profiles = self._question.profiles
        if not any(one.min != one.max for profile in profiles for one in profile.values()):
            return False
        exact = {name: Range(one.opt, one.opt, one.opt) for name, one in profiles[0].items()}
        narrow = self._normalise(table.parser, (exact,))
        return not self._judge(table, narrow.layout.model)[0]


def _refused_ends(model: ModelProto, table: ParserTable, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with inputs and outputs: I8 is taken for scaled numbers if types are hints."""
    if table.strongly_typed and options.get("precision", "definition") == "definition":
        return
    ends = [*model.graph.input, *model.graph.output]
    names = [one.name for one in ends if DTYPE_NAMES.get(one.type.tensor_type.elem_type) == "I8"]
    if names:
        reason = "I8 is taken for scaled numbers here: give I32 and cast inside the definition"
        yield Finding("inputs and outputs", reason, len(names), tuple(names))


def _refittable(definition: ModelProto, layout: Layout, options: Mapping[str, Any]) -> Refittable:
    names = list(onnx_graph.parameters_of(definition))
    refit = options.get("refit", "all")
    if refit == "none":
        return Refittable.of(names, names, 'the option refit is "none"')
    unread = [name for name in names if name not in layout.readers]
    if not isinstance(refit, list):
        return Refittable.of(names, unread, "they have no influence on the outputs")
    try:
        patterns = RefitPatterns.parse(refit)
    except RefitPatternError as error:
        return Refittable.of(names, names, f"the option refit cannot be used: {error}")
    fixed = [name for name in names if name in unread or not patterns.match(name)]
    return Refittable.of(names, fixed, "the option refit does not name them, or they have no influence on the outputs")


def _takes(table: ParserTable, finding: Finding) -> bool:
    limited = any(finding.operator in limit.operators and limit.words == finding.reason for limit in table.limits)
    return finding.operator in table.operators and not limited
