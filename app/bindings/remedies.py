"""What a binding problem means and what to do about it, in words and in rules a client can paste."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Final

from app.bindings.adapters import merging
from app.bindings.companions import Companion, Role, TypedTensor, companion, is_quantised
from app.bindings.fits import TURN
from app.bindings.misfits import resized
from app.bindings.naming import plain
from app.bindings.proposed import EXPORTED, Proposal, Proposed, is_square, named
from app.bindings.recurrent import gates
from app.bindings.report import ParameterBinding
from app.bindings.rule_sets import literal
from app.bindings.rules import FeedRule, Rule
from app.bindings.steps import TensorType
from app.weights.dtypes import DTYPES, is_lossless_cast

MAX_NON_FINITE = 10  # tensors that a warning names


def missing_remedy(parameter: str, missing: Sequence[str], proposed: Proposed) -> str:
    """Say which tensors a parameter lacks, and which rule would feed it, or why none can be told."""
    what = f"{parameter} is fed by {named(missing)}, which the weights do not have."
    proposal, doubt = proposed.by_parameter.get(parameter), proposed.doubts.get(parameter)
    told = [_advice(proposal)] if proposal else []
    told += [doubt.detail] if doubt else []
    if told:
        return " ".join([what, *told])
    return f"{what} Upload a checkpoint that has it, or add a rule that names the tensor to use."


def shape_remedy(
    parameter: str,
    names: Sequence[str],
    expected: TensorType,
    actual: TensorType,
    tensors: Mapping[str, TypedTensor],
) -> str:
    """Say how the shapes differ, and which transform would make them equal if one may."""
    what = f"{parameter} has shape {list(expected.shape)}, but its tensors make {list(actual.shape)}."
    known = companion(names[0], tensors)
    if known is not None and known.role == "recurrent part":
        return f"{what} {gates(names[0], known, tensors)}"
    if expected.shape == actual.shape[::-1] and len(expected.shape) > 1:
        perm = list(reversed(range(len(actual.shape))))
        return f"{what} If they are stored transposed, add {_json({'op': 'transpose', 'perm': perm})} to its rule."
    if prod(expected.shape) == prod(actual.shape):
        reshape = {"op": "reshape", "shape": list(expected.shape)}
        return f"{what} If only the shape differs, add {_json(reshape)} to its rule."
    if (resizing := resized(expected.shape, actual.shape)) is not None:
        return f"{what} If it is a vocabulary that was padded, add {_json(resizing)} to its rule."
    return (
        f"{what} Take a part of them with slice or split, join several with concat, "
        "or use weights trained for this definition."
    )


def cast_remedy(
    parameter: str,
    names: Sequence[str],
    expected: TensorType,
    actual: TensorType,
    tensors: Mapping[str, TypedTensor],
    proposed: Proposed,
) -> str:
    """Say why a cast is not made unasked, and how to ask for it or what to do instead."""
    what = f"{parameter} is {expected.dtype}, but its tensors make {actual.dtype}"
    proposal = proposed.by_parameter.get(parameter)
    if any(is_quantised(name, tensors[name]) for name in names):
        what = f"{what}, and such numbers usually want a scale first"
        if proposal is not None:
            return f"{what}. Dequantise them. {_advice(proposal)}"
        beside = {name: known for name in tensors if (known := companion(name, tensors)) and known.of in names}
        for name, known in beside.items():
            if known.role in _BY_ITS_TOOL:
                return f"{what}. {name} is the {_noun(known)} {known.of}. {_BY_ITS_TOOL[known.role]}"
        scales = [name for name, known in beside.items() if known.role in {"scale", "zero point"}]
        if scales:
            return (
                f"{what}. {named(scales)} belongs to {named(names)}: dequantise with the transform `dequantize`, "
                "naming the scale behind the numbers in the rule and its axis or block, or do it before the upload."
            )
    elif is_lossless_cast(actual.dtype, expected.dtype):
        what = f"{what}, and such numbers usually want a scale first"
    else:
        what = f"{what}, and that cast loses precision or range"
    cast = _json({"op": "cast", "dtype": expected.dtype})
    return f"{what}. If it is meant, add {cast} to its rule."


def foreign_remedy(parameter: str, foreign: Sequence[str]) -> str:
    """Say that tensors have element types that nothing is computed with here."""
    return (
        f"{parameter} is fed by tensors of types that cannot be read: {named(foreign)}. "
        f"Convert them to one of {', '.join(DTYPES)} and upload them again."
    )


def unexpected_remedy(
    tensor: str, known: Companion | None, proposed: Proposed, tensors: Mapping[str, TypedTensor]
) -> str:
    """Say that a tensor feeds nothing and what it seems to be; only what seems to be nothing may be ignored."""
    what, proposal = f"{tensor} feeds no parameter.", proposed.by_tensor.get(tensor)
    if known is not None:
        advice = _belongs(tensor, known, tensors) if proposal is None else f"{_identity(known)} {_advice(proposal)}"
        return f"{what} {advice}"
    if proposal is not None:
        return f"{what} It may be what {named(proposal.parameters)} lacks. {_advice(proposal)}"
    if (doubt := proposed.tensor_doubts.get(tensor)) is not None:
        return f"{what} {doubt.detail}"
    ignoring = f"add the rule {_ignoring(tensor)}."
    weight = f"{tensor.rpartition('.')[0]}.weight"
    if weight != tensor and weight in tensors and _may_be_learnt(tensors[tensor]):
        return (
            f"{what} It is kept beside {weight}. If the layer computes with it, the definition has no place for it, "
            "and an engine without it gives other outputs: fold it into the weight before the upload, or export the "
            f"model again. Only if nothing computes with it, {ignoring}"
        )
    if any(leaf.endswith(_LEAVES) for leaf in plain(tensor)[-1:]) and _may_be_learnt(tensors[tensor]):
        return (
            f"{what} Its name is that of a learnt tensor. If the model computes with it, the definition has no place "
            "for it, and an engine without it gives other outputs. An export of an untrained model is like that: "
            "parameters that are equal then, as norms are, become one. Export the trained model and register that. "
            f"Only if nothing computes with it, {ignoring}"
        )
    return f"{what} If it is not needed, {ignoring}"


_LEAVES: Final = ("weight", "bias")


def constant_remedy(tensor: str, *, is_equal: bool) -> str:
    """Say that the definition has a tensor of this name as a constant, so that no weights change it."""
    if is_equal:
        return f"{tensor} is a constant of the definition, of these very values. Add the rule {_ignoring(tensor)}."
    return (
        f"{tensor} is a constant of the definition, so no engine of it would follow the value that is uploaded here. "
        "If it was learnt, export the model so that it is a parameter, and register that as a new definition."
    )


def ignored_constants(names: Sequence[str]) -> str:
    """Warn that tensors are ignored which the definition has as constants of other values."""
    return (
        f"{named(names)} is ignored, and the definition has constants of these names with other values or types. Its "
        "engines compute with its own. If they were learnt or depend on the config, export the model again."
    )


def ignored_companion(tensor: str, known: Companion) -> str:
    """Warn that a rule leaves out what another tensor means nothing without."""
    return (
        f"This rule ignores {tensor}, the {_noun(known)} {known.of or 'the model'}: the engine computes as if there "
        "were none. Take the rule away unless that is meant."
    )


def unequal_warning(tensor: str, used: str) -> str:
    """Warn of a tensor that is ignored as a copy of another and is none."""
    return (
        f"{tensor} is ignored because the definition uses {used} in its place, but the two differ. If the model was "
        'trained with a head of its own, register it with "tie_word_embeddings": false in its config; if not, one of '
        "the two is out of date."
    )


def square_warning(bindings: Sequence[ParameterBinding]) -> Iterator[str]:
    """Warn of square matrices that are taken as they lie, although others under the same names are transposed.

    What torch.onnx.export has renamed says nothing of how the rest lies.
    """
    kept = [one for one in bindings if not one.parameter.startswith(EXPORTED) and _is_namesake(one)]
    if not any(TURN in one.transforms and not is_square(one.shape) for one in kept):
        return
    squares = [one.parameter for one in kept if is_square(one.shape) and TURN not in one.transforms]
    if squares:
        yield (
            f"Rules transpose other matrices, but {named(squares)} is taken as it lies: it is square, so its shape "
            "does not tell. If the checkpoint keeps it transposed as well, add it to the rule."
        )


def unused_remedy(rule: Rule) -> str:
    """Say what a rule that applied to nothing was meant to match."""
    if rule.is_preset:
        return "No rule of this preset finds its tensors, or earlier rules took them."
    if isinstance(rule, FeedRule):
        return f"No parameter is fed by the pattern {rule.parameter.text!r}: none matches, or earlier rules took them."
    return f"No unused tensor matches the pattern {rule.tensors.text!r}, or earlier rules took them."


def _ignoring(tensor: str) -> str:
    return _json({"ignore": literal(tensor)})


def _may_be_learnt(one: TypedTensor) -> bool:
    return one.dtype in DTYPES and DTYPES[one.dtype].kind == "float"


def _is_namesake(one: ParameterBinding) -> bool:
    return len(one.tensors) == 1 and plain(one.parameter)[-1:] == plain(one.tensors[0])[-1:]


def _advice(proposal: Proposal) -> str:
    return f"Add the rule {_json(dict(proposal.rule))}: {', and '.join(proposal.evidence)}."


def _belongs(tensor: str, known: Companion, tensors: Mapping[str, TypedTensor]) -> str:
    what = _identity(known)
    if known.role == "activation scale":
        return (
            f"{what} An engine quantises activations by itself, if at all; once the weights are dequantised, leave it "
            f"out of the upload or add the rule {_ignoring(tensor)}."
        )
    if known.role == "recurrent part":
        return f"{what} {gates(tensor, known, tensors)}"
    return f"{what} {_WHAT_TO_DO.get(known.role) or merging(tensor, known, tensors)}"


_WITH_SCALE = (
    "Those numbers mean nothing without it: dequantise them, in a rule that names the numbers, the "
    "scale and the zero point if there is one, with the transform `dequantize`, or do it before the upload."
)
_BY_ITS_TOOL: Mapping[Role, str] = {
    "quantisation data": (
        "What it means is known to the tool that has quantised the model: dequantise before the upload, with that."
    ),
    "absolute maximum": (
        "That is no scale yet: it is 127 times the scale of 8-bit integers, 448 times that of F8_E4M3, and "
        "bitsandbytes has codes of its own for 4 bits. Dequantise before the upload, with the tool that has quantised "
        "the model."
    ),
}
_WHAT_TO_DO: Mapping[Role, str] = {
    **_BY_ITS_TOOL,
    "scale": _WITH_SCALE,
    "zero point": _WITH_SCALE,
    "packed numbers": (
        "Several of them share an integer (GPTQ, AWQ and the like): dequantise before the upload, with the "
        "tool that has packed them."
    ),
    "weight part": (
        "The weight itself is computed from its parts: have the framework do that before saving, with "
        "torch.nn.utils.remove_weight_norm, remove_spectral_norm, parametrize.remove_parametrizations or prune.remove."
    ),
}


def _identity(known: Companion) -> str:
    return f"It is the {_noun(known)} {known.of or 'the model'}."


def _noun(known: Companion) -> str:
    if known.role == "adapter":
        return f"{known.part} of a low-rank adapter of"
    if known.role == "recurrent part":
        return f"{known.part} of the recurrent layer"
    return f"part {known.part} of the weight of" if known.role == "weight part" else f"{known.role} of"


def _json(value: object) -> str:
    return json.dumps(value)


def non_finite_warning(rows: Sequence[tuple[str, int, int]], *, meant: bool) -> str:
    """Say which tensors hold NaN or infinities; `rows` are (name, NaN, infinities).

    `meant` says that the definition's own weights have as many.
    """
    shown = [f"{name} ({nan} NaN, {inf} infinite)" for name, nan, inf in rows[:MAX_NON_FINITE]]
    more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
    what = f"Parameters are fed by tensors with elements that are not finite: {', '.join(shown)}{more}."
    if meant:
        return f"{what} The definition's own weights have as many there, so they are taken to be meant."
    return (
        f"{what} "
        'If they are meant, ask for the engine with "allow_non_finite": true. Otherwise upload a checkpoint that was '
        "saved before the training diverged."
    )
