"""What TensorRT makes of a graph, told from the tables of its parsers: neither a GPU nor TensorRT is needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from onnx import ModelProto

from app.definitions.profiles import Profile
from app.definitions.tensor_data import DTYPE_NAMES
from app.fleet.refit_patterns import RefitPatternError, RefitPatterns
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import LAYOUTS, Layout, lay_out
from workers.engine_host.backends.tensorrt.normalised import NormalisedLayout, normalised_layout
from workers.engine_host.backends.tensorrt.parser_tables import parser_table, parser_tables
from workers.engine_host.preflight.node_facts import facts_of
from workers.engine_host.preflight.parser_table import ParserTable
from workers.engine_host.preflight.verdict import Finding, Question, Refittable, Verdict

Normalised = Callable[[int], NormalisedLayout]


def check_tensorrt(definition: ModelProto, question: Question) -> list[Verdict]:
    """Return a verdict for each version of TensorRT."""
    return _verdicts("tensorrt", definition, question)


def check_tensorrt_rtx(definition: ModelProto, question: Question) -> list[Verdict]:
    """Return a verdict for each version of TensorRT-RTX."""
    return _verdicts("tensorrt_rtx", definition, question)


def _verdicts(library: str, definition: ModelProto, question: Question) -> list[Verdict]:
    known = [one for one in parser_tables() if one.library == library]
    versions = question.versions or tuple(one.releases[0] for one in known)
    packing = question.options.get("refit_layout", LAYOUTS[0])
    layout = lay_out(definition, packing)
    layouts: dict[int, NormalisedLayout] = {}

    def normalised(opset: int) -> NormalisedLayout:
        if opset not in layouts:
            layouts[opset] = normalised_layout(definition, layout, question.profiles, refit_layout=packing, opset=opset)
        return layouts[opset]

    judge = partial(_verdict, definition, layout, normalised, question)
    return [judge(version, parser_table(library, version)) for version in versions]


def _verdict(
    definition: ModelProto,
    layout: Layout,
    normalised: Normalised,
    question: Question,
    version: str,
    table: ParserTable | None,
) -> Verdict:
    refittable = _refittable(definition, layout, question.options)
    if table is None:
        unknown = Finding("any", "there is no table of what this version takes", 0, ())
        return Verdict(version, "no table", onnx_graph.operators(definition.graph), refittable, doubtful=(unknown,))
    normal = normalised(table.opset)
    model = normal.layout.model
    refused, doubtful = table.judge(facts_of(model, table.attributes))
    refused += tuple(_refused_ends(model, table, question.options))
    found = onnx_graph.opset_of(model)
    if found > table.opset:
        newer = f"the graph is of opset {found}, and this parser knows up to {table.opset}"
        doubtful += (Finding("any", newer, 0, ()),)
    return Verdict(
        version=version,
        source=f"table {table.name}",
        operators=onnx_graph.operators(model.graph),
        refittable=refittable,
        refused=refused,
        doubtful=doubtful,
        rewrites=[one.to_json() | {"meaning": one.meaning} for one in normal.rewrites],
        notes=(f"the definition is compiled as it is: {normal.kept_because}",) if normal.kept_because else (),
        remedies=tuple(_remedies(table, refused, question.profiles)) if refused else (),
    )


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


def _remedies(table: ParserTable, refused: Sequence[Finding], profiles: Sequence[Profile]) -> Iterator[str]:
    if any(one.min != one.max for profile in profiles for one in profile.values()) or len(profiles) > 1:
        yield "Narrow the profiles, best to one exact shape: more is computed before the build then."
    others = [one for one in parser_tables() if one is not table and all(_takes(one, finding) for finding in refused)]
    if others:
        names = ", ".join(f"{one.library} {one.releases[0]}" for one in others)
        yield f"Use a version whose parser knows these operators ({names})."
    yield "Export the model without these operators, or make the definition again with another opset."
    yield 'Use another backend: "onnxruntime" takes most of what ONNX has.'


def _takes(table: ParserTable, finding: Finding) -> bool:
    limited = any(finding.operator in limit.operators and limit.words == finding.reason for limit in table.limits)
    return finding.operator in table.operators and not limited
