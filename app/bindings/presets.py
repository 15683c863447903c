r"""Rules by name for what common tools do to the names and the layout of a checkpoint.

    {"preset": "peft-base@1"}

A preset stands for its rules at that place of the list. They count only for parameters whose tensors they find, so that
presets can be combined. A version never changes; what is done otherwise gets a new one.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_TURNED: Final = {"transforms": [{"op": "transpose", "perm": [1, 0]}]}

PRESETS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = MappingProxyType(
    {
        # torch.nn.DataParallel and torch.compile put themselves before every name.
        "torch-wrappers@1": (
            {"parameter": "(.+)", "tensors": [r"module.\1"]},
            {"parameter": "(.+)", "tensors": [r"_orig_mod.\1"]},
            {"parameter": "(.+)", "tensors": [r"module._orig_mod.\1"]},
            {"parameter": "(.+)", "tensors": [r"_orig_mod.module.\1"]},
        ),
        # PEFT keeps the base model's weights so; those that have no adapter keep their names behind the prefix.
        "peft-base@1": (
            {"parameter": r"(.+)\.(weight|bias)", "tensors": [r"base_model.model.\1.base_layer.\2"]},
            {"parameter": "(.+)", "tensors": [r"base_model.model.\1"]},
        ),
        # Checkpoints converted from TensorFlow call a LayerNorm's tensors gamma and beta.
        "layernorm-gamma-beta@1": (
            {"parameter": r"(.+)\.weight", "tensors": [r"\1.gamma"]},
            {"parameter": r"(.+)\.bias", "tensors": [r"\1.beta"]},
        ),
        # GPT-2's Conv1D keeps [in, out], a Linear [out, in]: this makes either of the other.
        "conv1d-linear@1": (
            {"parameter": r"(.+\.(?:c_attn|c_proj|c_fc|q_attn))\.weight", "tensors": [r"\1.weight"], **_TURNED},
        ),
        # What modules keep beside their weights and no engine needs.
        "torch-buffers@1": (
            {"ignore": r"(.+\.)?num_batches_tracked"},
            {"ignore": r"(.+\.)?position_ids"},
            {"ignore": r"(.+\.)?rotary_emb\.inv_freq"},
            {"ignore": r"(.+\.)?attn\.(bias|masked_bias)"},
        ),
    }
)
