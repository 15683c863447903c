"""Which inputs of operators are settings, such as shapes, axes and bounds, and which can only be weights.

Source: the operator schemas of ai.onnx, opsets 7 to 26. Compilers want to know a setting's value when they compile.
`weight_rule` says how these tables decide.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_ALL = frozenset(range(16))

SETTINGS: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {
        "AffineGrid": frozenset({1}),
        "BlackmanWindow": _ALL,
        "CenterCropPad": frozenset({1}),
        "Clip": frozenset({1, 2}),
        "Col2Im": frozenset({1, 2}),
        "ConstantOfShape": _ALL,
        "CumSum": frozenset({1}),
        "DFT": frozenset({1, 2}),
        "Dropout": frozenset({1, 2}),
        "Expand": frozenset({1}),
        "HammingWindow": _ALL,
        "HannWindow": _ALL,
        "If": _ALL,
        "Loop": frozenset({0, 1}),
        "MaxUnpool": frozenset({2}),
        "MelWeightMatrix": _ALL,
        "NonMaxSuppression": frozenset({2, 3, 4}),
        "OneHot": frozenset({1, 2}),
        "Pad": frozenset({1, 2, 3}),
        "Range": _ALL,
        **{
            f"Reduce{kind}": frozenset({1})
            for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        },
        "Reshape": frozenset({1}),
        "Resize": frozenset({1, 2, 3}),
        "STFT": frozenset({1, 3}),
        "Slice": frozenset({1, 2, 3, 4}),
        "Split": frozenset({1}),
        "SplitToSequence": frozenset({1}),
        "Squeeze": frozenset({1}),
        "Tile": frozenset({1, 2}),
        "TopK": frozenset({1}),
        "Trilu": frozenset({1}),
        "Unsqueeze": frozenset({1}),
        "Upsample": frozenset({1}),
    }
)

# Values pass through these on their way to a setting: a Resize scale that is cast or concatenated is one still.
SETTING_ARITHMETIC: Final = frozenset(
    {"Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Identity", "Mul", "Squeeze", "Sub", "Unsqueeze"}
)

# A single element here is a number of a formula: what a mask is made by, and what it fills in. An exponent and a
# threshold may be learnt.
SCALAR_SETTINGS: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {
        "Equal": _ALL,
        "Mod": _ALL,
        "Where": frozenset({1, 2}),
    }
)

# An epsilon is added to, or is the least of, what one of these would not take at zero.
EPSILON_ARITHMETIC: Final = frozenset({"Add", "Max"})
NEEDS_EPSILON: Final = frozenset({"Log", "Pow", "Reciprocal", "Sqrt"})

# Here even a single element is a weight: the bias of a one-channel head has shape [1].
WEIGHTS: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {
        "BatchNormalization": frozenset({1, 2, 3, 4}),
        "Conv": frozenset({1, 2}),
        "ConvInteger": frozenset({1, 2, 3}),
        "ConvTranspose": frozenset({1, 2}),
        "DeformConv": frozenset({1, 3}),
        "DequantizeLinear": frozenset({0, 1, 2}),
        "GRU": frozenset({1, 2, 3, 5}),
        "Gemm": frozenset({1, 2}),
        "GroupNormalization": frozenset({1, 2}),
        "InstanceNormalization": frozenset({1, 2}),
        "LayerNormalization": frozenset({1, 2}),
        "LSTM": frozenset({1, 2, 3, 5, 6, 7}),
        "MatMul": frozenset({0, 1}),
        "MatMulInteger": frozenset({0, 1, 2, 3}),
        "PRelu": frozenset({1}),
        "QLinearConv": frozenset(range(9)),
        "QLinearMatMul": frozenset(range(8)),
        "QuantizeLinear": frozenset({0, 1, 2}),
        "RNN": frozenset({1, 2, 3, 5}),
        "RMSNormalization": frozenset({1}),
    }
)

# What a recurrent layer starts from.
INITIAL_STATES: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {"GRU": frozenset({5}), "LSTM": frozenset({5, 6}), "RNN": frozenset({5})}
)

# What is given to these first is spread over a batch on its way there.
STATE_SPREADING: Final = frozenset({"Cast", "Expand", "Identity", "Slice", "Tile", "Unsqueeze"})

# What is added to the int32 that these make is a bias.
INTEGER_PRODUCTS: Final = frozenset({"ConvInteger", "MatMulInteger"})

# Integers wider than 8 bits are weights only here, and as such a bias. A quantised bias is int32, a zero
# point may be int16.
INTEGER_WEIGHTS: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {
        "DequantizeLinear": frozenset({0, 2}),
        "QLinearConv": frozenset({8}),
        "QuantizeLinear": frozenset({2}),
    }
)
