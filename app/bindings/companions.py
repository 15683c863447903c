"""Tensors that mean nothing by themselves: scales of quantised numbers, factors of adapters, parts of a weight.

A checkpoint has them beside the tensor or the module that they belong to. To leave one out is to compute something
else, so none of them is ever to be ignored unasked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

Role = Literal[
    "packed numbers",
    "scale",
    "absolute maximum",
    "zero point",
    "activation scale",
    "quantisation data",
    "adapter",
    "weight part",
    "recurrent part",
]


class TypedTensor(Protocol):
    """The part of a tensor that is looked at here."""

    @property
    def dtype(self) -> str: ...  # noqa: D102 - the protocol's members speak for themselves
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Companion:
    """What a tensor is to another: to the quantised tensor `of`, or to the weight of the module `of`."""

    role: Role
    of: str
    part: str  # what its own name says of it, as "lora_A" or "weight_scale_inv"


_QUANTISED: Final = ("F8", "F4", "I8", "U8", "I4", "U4")
_PACKED: Final = ("qweight", "weight_packed")  # several numbers in each I32
_ROLES: Final[tuple[tuple[Role, re.Pattern[str]], ...]] = (
    ("activation scale", re.compile(r"(.+?)[._]((?:input|output|k|v|q|act(?:ivation)?)_(?:global_)?scale(?:_inv)?)")),
    ("zero point", re.compile(r"(.+?)[._](zero_points?|zeros|qzeros|zp)")),
    ("scale", re.compile(r"(.+?)[._]((?:global_|outer_)?(?:de)?scales?(?:_inv|_2|_inverse)?|scale_weight)")),
    ("zero point", re.compile(r"(?:zero_points?|zeros)[._](?P<of>.+)")),
    ("scale", re.compile(r"scales?[._](?P<of>.+)")),
    ("absolute maximum", re.compile(r"(.+?)[._](SCB|absmax|amax)")),
    ("quantisation data", re.compile(r"(.+?)[._](quant_map|nested_\w+|quant_state\..+|g_idx|weight_format)")),
)
_ADAPTER: Final = re.compile(
    r"(?:(.+?)[._])?"
    r"(lora_(?:A|B|E|a|b|up|down|mid|alpha|ranknum|embedding_A|embedding_B|magnitude_vector)|lora_linear_layer\.(?:up|down)"
    r"|lora\d*\.(?:up|down)|dora_scale|hada_[wt]\d(?:_[ab])?|lokr_[wt]\d(?:_[ab])?|ia3_l|b?oft_(?:blocks|diag|r|R|s)|vera_(?:A|B|lambda_[bd])|diff(?:_b)?)"
    r"(?:\.(?!weight$|bias$)\w+)?(?:\.(?:weight|bias))?"
)
_ALPHA: Final = re.compile(r"(.+)\.(alpha|scaling)")
_WRAPPERS: Final = re.compile(r"^(?:base_model\.model\.|lora_(?:unet|te\d?|transformer)_)")
_PARTS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"(.+)\.(weight_g)"), "weight_v"),
    (re.compile(r"(.+)\.(weight_v)"), "weight_g"),
    (re.compile(r"(.+)\.(parametrizations\.weight\.original0)"), "parametrizations.weight.original1"),
    (re.compile(r"(.+)\.(parametrizations\.weight\.original1)"), "parametrizations.weight.original0"),
    (re.compile(r"(.+)\.(weight_mask)"), "weight_orig"),
    (re.compile(r"(.+)\.(weight_orig)"), ""),
    (re.compile(r"(.+)\.(weight_[uv])"), "weight_orig"),
    (re.compile(r"(.+)\.(parametrizations\.\w+\.original)"), ""),
    (re.compile(r"(.+)\.(parametrizations\.\w+\.\d+\..+)"), ""),
)
_RECURRENT: Final = re.compile(r"(?:(.+)\.)?((?:weight|bias)_(?:ih|hh)_l\d+(?:_reverse)?)")


# Any companion's name has one of these in it; most tensors of a checkpoint have none.
_HINT: Final = re.compile(
    "scale|SCB|amax|absmax|zero|zp|quant|nested_|g_idx|weight_|bias_|qweight|lora|hada_|lokr_|ia3_l|alpha|scaling|original"
    "|oft_|vera_|diff|parametrizations"
)


def companion(name: str, tensors: Mapping[str, TypedTensor]) -> Companion | None:
    """Say what a tensor is to another one of the checkpoint, or None if its name and the others tell nothing."""
    if _HINT.search(name) is None:
        return _behind_quantised(name, tensors)
    if tensors[name].dtype == "I32" and name.endswith(_PACKED):
        return Companion("packed numbers", name.rpartition(".")[0], name.rpartition(".")[2])
    known = _of_quantised(name, tensors) or _of_module(name, tensors) or _of_weight(name, tensors)
    return known or _behind_quantised(name, tensors)


def _behind_quantised(name: str, tensors: Mapping[str, TypedTensor]) -> Companion | None:
    """Say that a tensor belongs to quantised numbers whose name it goes on from, whatever it is."""
    for end in _ENDS.finditer(name):
        of = name[: end.start()]
        if of in tensors and is_quantised(of, tensors[of]):
            return Companion("quantisation data", of, name[end.end() :])
    return None


_ENDS: Final = re.compile(r"[._]")


def is_quantised(name: str, tensor: TypedTensor) -> bool:
    """Whether a tensor holds numbers that want a scale, by its dtype or, if they are packed, by its name."""
    return tensor.dtype.startswith(_QUANTISED) or (tensor.dtype == "I32" and name.endswith(_PACKED))


def scales_of(name: str, tensors: Mapping[str, TypedTensor]) -> tuple[str, str | None] | None:
    """Return the one scale of a quantised tensor and its zero point, if any; None if there is none, or several."""
    module = name.rpartition(".")[0]
    found: dict[str, list[str]] = {"scale": [], "zero point": []}
    for other in _neighbours(name, module, tensors):
        known = _of_quantised(other, tensors)
        if known is not None and known.of == name and known.role in found:
            found[known.role].append(other)
    scales, zeros = found["scale"], found["zero point"]
    return (scales[0], zeros[0] if zeros else None) if len(scales) == 1 and len(zeros) < 2 else None


def _neighbours(name: str, module: str, tensors: Mapping[str, TypedTensor]) -> list[str]:
    """The names under which scales are kept; to go through all tensors for each would take too long."""
    bases = (name, module) if module else (name,)
    behind = [other for base in bases for suffix in _SUFFIXES if (other := base + suffix) in tensors]
    return behind + [other for base in bases for prefix in _PREFIXES if (other := prefix + base) in tensors]


_SUFFIXES: Final = tuple(
    separator + word
    for separator in "._"
    for word in (
        "scale", "scale_inv", "scale_inverse", "scales", "descale", "scale_2", "global_scale", "outer_scale",
        "scale_weight", "zero_point", "zero_points", "zeros", "qzeros", "zp",
    )
)  # fmt: skip


_PREFIXES: Final = tuple(
    word + separator for separator in "._" for word in ("scale", "scales", "zero_point", "zero_points", "zeros")
)


def _of_quantised(name: str, tensors: Mapping[str, TypedTensor]) -> Companion | None:
    for role, pattern in _ROLES:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        base, part = (
            (match["of"], name.partition(match["of"])[0][:-1]) if "of" in pattern.groupindex else match.groups()
        )
        for of in (base, f"{base}.weight", f"{base}.qweight", f"{base}.weight_packed", f"{base}_packed"):
            if of in tensors and is_quantised(of, tensors[of]):
                return Companion(role, of, part)
    return None


def _of_module(name: str, tensors: Mapping[str, TypedTensor]) -> Companion | None:
    match = _ADAPTER.fullmatch(name)
    if match is not None:
        return Companion("adapter", _WRAPPERS.sub("", match[1] or ""), match[2])
    match = _ALPHA.fullmatch(name)
    beside = (f"{match[1]}.{factor}{end}" for factor in _BESIDE_ALPHA for end in ("", ".weight")) if match else ()
    if match is not None and any(factor in tensors for factor in beside):
        return Companion("adapter", _WRAPPERS.sub("", match[1]), match[2])
    return None


def is_recurrent(name: str) -> bool:
    """Whether PyTorch calls a weight of an LSTM or GRU so, whose gates ONNX puts in another order."""
    return _RECURRENT.fullmatch(name) is not None


# What an adapter of each kind has in any case: LoRA, LoHa, LoKr, OFT, (IA)3, and full differences.
_BESIDE_ALPHA: Final = (
    "lora_down", "lora_up", "lora_A", "lora_B", "lora_linear_layer.down", "lora.down", "hada_w1_a", "hada_w1_b",
    "lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a", "oft_blocks", "oft_diag", "oft_r", "oft_R", "boft_R", "boft_s",
    "diff",
)  # fmt: skip


def _of_weight(name: str, tensors: Mapping[str, TypedTensor]) -> Companion | None:
    for pattern, other in _PARTS:
        match = pattern.fullmatch(name)
        if match is not None and (not other or f"{match[1]}.{other}" in tensors):
            return Companion("weight part", match[1], match[2])
    match = _RECURRENT.fullmatch(name)
    return Companion("recurrent part", match[1] or "", match[2]) if match is not None else None
