"""Batch normalisations of a checkpoint that a definition has no place for, because an exporter folded them away.

Exporters multiply such a layer into the convolution or linear layer before it: W' = W gamma / sqrt(var + eps), and
likewise the bias. The weight and bias of the checkpoint then have the names and shapes of what the definition wants,
and other values.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from app.bindings.companions import TypedTensor
from app.bindings.naming import OLDER

STATISTICS: Final = frozenset({"running_mean", "running_var"})
LEARNT: Final = frozenset({"weight", "bias"})
# torch.onnx.export makes up the name of a convolution's weight only where it folded something into it.
FOLDED: Final = "onnx::Conv"

Norms = Mapping[str, str]  # the layer of each of its tensors


def folded_norms(
    left: Iterable[str], tensors: Mapping[str, TypedTensor], missing: Iterable[tuple[int, ...]]
) -> dict[str, str]:
    """Return the layer of each tensor among `left`, which feed nothing, that belongs to a folded normalisation.

    `missing` are the shapes of the parameters that nothing feeds. If as many of a shape are missing as such layers have
    tensors of it, the definition may have the layers under other names.
    """
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for name in left:
        layer, _, leaf = name.rpartition(".")
        leaf = OLDER.get(leaf, leaf)
        if leaf in STATISTICS | LEARNT:
            layers[layer][leaf] = name
    norms = {layer: found for layer, found in layers.items() if found.keys() >= STATISTICS}
    places = Counter(missing)
    wanted = Counter(tensors[name].shape for found in norms.values() for name in found.values())
    return {
        name: layer
        for layer, found in norms.items()
        for name in found.values()
        if places[tensors[name].shape] < wanted[tensors[name].shape]
    }


def is_product(parameter: str, shape: tuple[int, ...], shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether a parameter that nothing feeds may be what such a layer was folded into; `shapes` are those of layers."""
    return parameter.startswith(FOLDED) or shape in shapes


_REMEDY: Final = (
    'Upload an ONNX export of the trained model (POST …/weights with "onnx"): that needs no rules. Or fold before '
    "saving, with fuse_conv_bn_eval or fuse_linear_bn_eval of torch.nn.utils.fusion. For a definition that takes such "
    "checkpoints as they are, export with torch.onnx.export(…, dynamo=True, optimize=False), or with dynamo=False, "
    "training=TrainingMode.PRESERVE and do_constant_folding=False."
)


def folded_remedy(layer: str) -> str:
    """Say what became of a layer, and how to get weights that fit."""
    return (
        f"It belongs to the batch normalisation {layer or 'of the model'}, which the definition has no place for. "
        "Exporters fold such a layer into the weight and the bias of the convolution or linear layer before it, so the "
        "checkpoint's are not what the definition wants, even under the same names: an engine of them gives other "
        f"outputs. {_REMEDY}"
    )


def product_remedy(parameters: str, layers: str) -> str:
    """Say why no tensor of the checkpoint is proposed for what layers may have been folded into."""
    return (
        f"No tensor of the checkpoint is proposed for {parameters}: an exporter seems to have folded {layers} into "
        f"the layers before, and their weights and biases are products that the checkpoint does not hold. {_REMEDY}"
    )


def ignored_norm(layer: str) -> str:
    """Warn that a rule leaves out a layer that the definition may have folded into others."""
    return f"This rule ignores a layer. {folded_remedy(layer)}"
