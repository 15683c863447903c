"""Binding rules and reports as clients see them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.bindings.presets import PRESETS
from app.bindings.report import ProblemKind
from app.bindings.rules import MAX_RULES
from app.http.fields import Number
from app.http.request_body import RequestBody

RULES: list[Any] = [
    {"parameter": "(.*)", "tensors": [r"bert.\1"]},
    {"ignore": r"cls\..*"},
]
TRANSFORM: dict[str, Any] = {"op": "cast", "dtype": "F32"}
BINDING: dict[str, Any] = {
    "parameter": "embeddings.word_embeddings.weight",
    "dtype": "F32",
    "shape": [30522, 384],
    "tensors": ["bert.embeddings.word_embeddings.weight"],
    "transforms": [TRANSFORM],
}
PROBLEM: dict[str, Any] = {
    "kind": "wrong_shape",
    "parameter": "encoder.layer.0.intermediate.dense.weight",
    "tensors": ["bert.encoder.layer.0.intermediate.dense.weight"],
    "expected": {"dtype": "F32", "shape": [1536, 384]},
    "actual": {"dtype": "F32", "shape": [384, 1536]},
    "detail": "encoder.layer.0.intermediate.dense.weight has shape [1536, 384], but its tensors make [384, 1536]. "
    'If they are stored transposed, add {"op": "transpose", "perm": [1, 0]} to its rule.',
}


PROPOSAL: dict[str, Any] = {
    "rule": {
        "parameter": "onnx::MatMul_11",
        "tensors": ["fc.weight"],
        "transforms": [{"op": "transpose", "perm": [1, 0]}],
    },
    "evidence": [
        "fc.weight alone of all tensors that feed nothing fits onnx::MatMul_11, and fits no other parameter",
        "torch.onnx.export transposes a Linear's weight and renames it so",
        "its shape [3, 4] is [4, 3] transposed",
    ],
    "parameters": ["onnx::MatMul_11"],
}


class BindingRequest(RequestBody):
    """What to bind to what, and the rules to bind by; without a rule a tensor feeds the parameter of its name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"definition": 1, "weights": 2, "rules": RULES}]})

    definition: Number = Field(description="Number of the definition.")
    weights: Number = Field(description="Number of the weight version.")
    rules: list[dict[str, Any]] = Field(
        [],
        max_length=MAX_RULES,
        description=(
            '`{"parameter": PATTERN, "tensors": [TEMPLATE, ...], "transforms": [...]}` or `{"ignore": PATTERN}`, '
            'or `{"preset": NAME}` for the rules of a common tool: ' + ", ".join(f"`{name}`" for name in PRESETS) + ". "
            "The first rule that matches wins. A pattern is an RE2 regular expression for the whole name; "
            r"a template names a tensor, with `\1` or `\g<name>` for the pattern's groups. Transforms are "
            "`transpose {perm}`, `reshape {shape}`, `slice {axis, start, stop, step}`, "
            "`split {axis, sections, index}`, `concat {axis}`, `cast {dtype}`, `reorder {axis, order}`, "
            "`divide {axis, sizes}`, `each {transforms}`, `pad {axis, size, value}`, `dequantize {axis, block}`, "
            "`add_scaled {scale}` and `merge_lora {scale}`."
        ),
    )


class TypeAnswer(BaseModel):
    """The dtype and shape of a tensor."""

    dtype: str
    shape: list[int]


class BindingAnswer(BaseModel):
    """The tensors that feed one parameter, in order, and the transforms they go through."""

    model_config = ConfigDict(json_schema_extra={"examples": [BINDING]})

    parameter: str
    dtype: str
    shape: list[int]
    tensors: list[str]
    transforms: list[dict[str, Any]]


class ProblemAnswer(BaseModel):
    """One reason why the weights cannot be bound; `detail` says what to do about it."""

    model_config = ConfigDict(json_schema_extra={"examples": [PROBLEM]})

    kind: ProblemKind
    parameter: str | None
    tensors: list[str]
    expected: TypeAnswer | None
    actual: TypeAnswer | None
    detail: str


class WarningAnswer(BaseModel):
    """What may be wrong although the weights bind; `detail` says what to do about it."""

    rule: int = Field(description="The rule of the request that is the cause, counted from 0; -1 if none is.")
    detail: str


class ProposalAnswer(BaseModel):
    """A rule that would bind parameters which are not bound yet, and what speaks for it."""

    model_config = ConfigDict(json_schema_extra={"examples": [PROPOSAL]})

    rule: dict[str, Any]
    evidence: list[str] = Field(description="What speaks for it, told of the first of its parameters.")
    parameters: list[str]


class UnclearAnswer(BaseModel):
    """What cannot be told: which of the tensors feed the parameters, or which way round they lie."""

    parameters: list[str]
    tensors: list[str]
    detail: str


REPORT: dict[str, Any] = {
    "ok": False,
    "definition": 1,
    "weights": 2,
    "digest": "sha256:" + "4c" * 32,
    "problems": [PROBLEM],
    "warnings": [{"rule": 1, "detail": r"No unused tensor matches the pattern 'cls\..*'."}],
    "ignored": [],
    "bindings": [BINDING],
    "proposals": [PROPOSAL],
    "unclear": [],
}


class ReportAnswer(BaseModel):
    """The outcome of a binding check: `ok` is true exactly when there are no problems."""

    model_config = ConfigDict(json_schema_extra={"examples": [REPORT]})

    ok: bool
    definition: int
    weights: int
    digest: str
    problems: list[ProblemAnswer]
    warnings: list[WarningAnswer]
    ignored: list[str] = Field(description="Tensors that feed nothing and that a rule ignores.")
    bindings: list[BindingAnswer]
    proposals: list[ProposalAnswer] = Field([], description="Rules that would help, each to be put before the others.")
    unclear: list[UnclearAnswer] = Field([], description="What no rule is proposed for, or only with a doubt.")


class ProposeAnswer(BaseModel):
    """A whole set of rules, and the report that it leads to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ok": True,
                    "rules": [PROPOSAL["rule"]],
                    "proposals": [PROPOSAL],
                    "unclear": [],
                    "report": REPORT | {"ok": True, "problems": [], "warnings": [], "proposals": []},
                }
            ]
        }
    )

    ok: bool = Field(description="Whether the weights bind by `rules` and nothing is unclear.")
    rules: list[Any] = Field(description="The proposed rules, then those of the request.")
    proposals: list[ProposalAnswer]
    unclear: list[UnclearAnswer] = Field(description="What nothing tells; a rule is proposed only as far as it says.")
    report: ReportAnswer = Field(description="What a check with `rules` answers.")
