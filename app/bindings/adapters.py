"""How adapters that a checkpoint has beside its base weights are merged into them, before the upload or by a rule."""

import json
from collections.abc import Mapping
from typing import Final

from app.bindings.companions import Companion, TypedTensor

_WITH_ITS_TOOL: Final = "with the tool that has made it (PEFT: merge_and_unload)."
_MAGNITUDES: Final = ("lora_magnitude_vector", "dora_scale")


def merging(tensor: str, known: Companion, tensors: Mapping[str, TypedTensor]) -> str:
    """Say how to merge the adapter that a tensor belongs to; a rule is named if one does it and its tensors are there.

    A PEFT model keeps the weight that it adapts as `base_layer.weight`, or as `weight` in older releases.
    """
    if not known.part.startswith("lora"):
        return f"Merge the adapter into the base weights before the upload, {_WITH_ITS_TOOL}"
    if any(other in tensors for part in _MAGNITUDES for other in _beside(tensor, known.part, part)):
        return (
            f"The adapter also scales each row (DoRA), which no rule does: merge it before the upload, {_WITH_ITS_TOOL}"
        )
    merge = "Merge the adapter into the base weights before the upload, W + (alpha / r) B A (PEFT: merge_and_unload)"
    if known.part not in {"lora_A", "lora_B"}:
        return f"{merge}."
    down, up = (tensor.replace(known.part, factor) for factor in ("lora_A", "lora_B"))
    module = tensor.rpartition(known.part)[0]
    names = (f"{known.of}.weight" if known.of else "weight", f"{module}base_layer.weight", f"{module}weight")
    weight = next((name for name in names if name in tensors), None)
    if weight is None or down not in tensors or up not in tensors or not tensors[down].shape:
        return f"{merge}."
    rank = tensors[down].shape[0]
    return (
        f"{merge}, or in the rule of the parameter that {weight} feeds: {json.dumps([weight, down, up])} as its "
        f'tensors, and {{"op": "merge_lora", "scale": S}} before its other transforms, with S = alpha / {rank}, alpha '
        f"as adapter_config.json has it; with its use_rslora, S = alpha / sqrt({rank}). With its fan_in_fan_out, or if "
        "it has an alpha_pattern, only the first way is right."
    )


def _beside(tensor: str, part: str, other: str) -> tuple[str, str]:
    renamed = tensor.replace(part, other)
    return renamed, renamed.removesuffix(".weight")
