"""GPT-2 decoders: `GPT2LMHeadModel` of Hugging Face transformers, for inference over whole sequences.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and transformers'
`modeling_gpt2.py` and `configuration_gpt2.py`, whose parameter names (without the prefix `transformer.`) and defaults
hold here.

Inputs, both I64 [batch, sequence]: input_ids and attention_mask (0 hides a token, anything else shows it). Positions
count from 0 in every row, as they do in transformers unless position_ids are given. A sequence longer than
`n_positions` fails when it runs. The output, F32 in either precision, is logits [batch, sequence, vocab], or
last_hidden_state [batch, sequence, n_embd] if the config says `"add_lm_head": false`.

Precision fp16 makes every parameter F16; softmax and the inner part of LayerNormalization are computed in F32, so
`reorder_and_upcast_attn` changes nothing. Hidden states are kept as [batch * sequence, n_embd] between the layers.
Weights of dense layers are `Conv1D`'s, [in, out]; the token table [vocab, n_embd] is the head's weight as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType
from typing import Any, Final

from onnx import ModelProto, TensorProto

from app.definitions.family import FamilyGraph, Precision
from app.definitions.family_parts.activations import ACTIVATIONS
from app.definitions.family_parts.config import ConfigReader
from app.definitions.family_parts.layers import Layers

HIDDEN_SCORE: Final = -30000.0  # far below any score; its sum with one is finite in F16, even if all are hidden
HEAD: Final = "lm_head.weight"
# The names under which transformers takes the same values; config.json files have those on the right.
ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
)


def build(config: Mapping[str, Any], precision: Precision) -> FamilyGraph:
    """Build the graph of a GPT-2 config; raises Rejected with every fault of the config."""
    gpt2 = Gpt2Config.read(config)
    dtype = {"fp32": "F32", "fp16": "F16"}[precision]
    model = Gpt2Graph(gpt2, dtype).build()
    return FamilyGraph(model, default_rules(gpt2, dtype), gpt2.used)


def default_rules(config: "Gpt2Config", dtype: str) -> list[Mapping[str, Any]]:
    """Return the rules that let a checkpoint of `GPT2Model` or `GPT2LMHeadModel` bind as it is.

    A tied table that was saved once may have the head's name.
    """
    rules: list[Mapping[str, Any]] = [{"ignore": r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"}]
    feeds = [("(.*)", r"\1"), ("(.*)", r"transformer.\1")]
    if config.is_tied:
        rules.append({"ignore": r"lm_head\.weight", "equal_to": "wte.weight"})
    elif not config.has_head:
        rules.append({"ignore": r"lm_head\.weight"})
    if config.is_tied:
        feeds.append((r"wte\.weight", HEAD))
    cast = {} if dtype == "F32" else {"transforms": [{"op": "cast", "dtype": dtype}]}
    return rules + [{"parameter": pattern, "tensors": [tensor], **cast} for pattern, tensor in feeds]


@dataclass(frozen=True, slots=True)
class Gpt2Config:
    """The keys of a config that shape the graph; `used` is all of them as read, defaults included."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    inner_size: int
    activation: str
    positions: int
    epsilon: float
    scales_scores: bool
    scales_by_layer: bool
    has_head: bool
    is_tied: bool
    used: Mapping[str, Any]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Gpt2Config":
        """Read a config.json; raises Rejected with every fault."""
        reader = ConfigReader({key: value for key, value in config.items() if key != "n_inner" or value is not None})
        reader.choice("model_type", "gpt2", {"gpt2"})
        reader.refuse("add_cross_attention", "only decoders without an encoder are built")
        reader.refuse("pruned_heads", "save the pruned model with its heads in place")
        reader.refuse("quantization_config", "dequantise the checkpoint first")
        reader.flag("reorder_and_upcast_attn", default=False)
        hidden_size = reader.size("n_embd", 768, most=65536)
        gpt2 = cls(
            vocab_size=reader.size("vocab_size", 50257, most=10_000_000),
            hidden_size=hidden_size,
            layers=reader.size("n_layer", 12, most=512),
            heads=reader.size("n_head", 12, most=1024),
            inner_size=reader.size("n_inner", 4 * hidden_size, most=1_000_000),
            activation=reader.choice("activation_function", "gelu_new", ACTIVATIONS),
            positions=reader.size("n_positions", 1024, most=1_000_000),
            epsilon=reader.small_positive("layer_norm_epsilon", 1e-5),
            scales_scores=reader.flag("scale_attn_weights", default=True),
            scales_by_layer=reader.flag("scale_attn_by_inverse_layer_idx", default=False),
            has_head=reader.flag("add_lm_head", default=True),
            is_tied=reader.flag("tie_word_embeddings", default=True),
            used=reader.used,
        )
        if hidden_size % gpt2.heads:
            reader.fault("n_head", f"{gpt2.heads} heads do not divide n_embd {hidden_size}")
        for alias, key in ALIASES.items():
            if alias in config and config[alias] != reader.used[key]:
                reader.fault(alias, f"{config[alias]!r} is not {key}, which is {reader.used[key]}: give {key} alone")
        reader.finish()
        return gpt2


class Gpt2Graph(Layers):
    """Writes the graph of one config."""

    def __init__(self, config: Gpt2Config, dtype: str) -> None:
        super().__init__(dtype)
        self.config = config

    def build(self) -> ModelProto:
        """Return the model."""
        graph, config = self.graph, self.config
        ids, mask = (graph.input(name, "I64", ["batch", "sequence"]) for name in ("input_ids", "attention_mask"))
        shape = graph.op("Shape", ids)
        length = graph.op("Gather", shape, graph.ints(1))
        by_head = graph.op("Concat", shape, graph.ints(config.heads, config.hidden_size // config.heads), axis=0)
        hidden_scores = self._hidden_scores(mask, length)
        tokens = graph.parameter("wte.weight", self.dtype, [config.vocab_size, config.hidden_size])
        state = self._embeddings(ids, tokens, length)
        for layer in range(config.layers):
            with graph.scope(f"h.{layer}"):
                state = self._layer(state, hidden_scores, by_head, self._score_scale(layer))
        self._output(self._normalise(state, "ln_f"), tokens, shape)
        return graph.finish()

    def _hidden_scores(self, mask: str, length: str) -> str:
        """Return what is added to attention scores, F32 [batch, 1, sequence of queries, sequence of keys]."""
        graph = self.graph
        zero, hidden = graph.scalar(0.0, "F32"), graph.scalar(HIDDEN_SCORE, "F32")
        shown = graph.op("Cast", mask, to=TensorProto.BOOL)
        of_keys = graph.op("Unsqueeze", graph.op("Where", shown, zero, hidden), graph.ints(1, 2))
        keys = graph.op("Slice", graph.arange(self.config.positions), graph.ints(0), length, graph.ints(0))
        is_later = graph.op("Greater", keys, graph.op("Unsqueeze", keys, graph.ints(1)))
        return graph.op("Where", is_later, hidden, of_keys)

    def _embeddings(self, ids: str, tokens: str, length: str) -> str:
        graph, config = self.graph, self.config
        positions = graph.parameter("wpe.weight", self.dtype, [config.positions, config.hidden_size])
        positions = graph.op("Slice", positions, graph.ints(0), length, graph.ints(0))
        state = graph.op("Add", graph.op("Gather", tokens, ids), positions)
        return graph.op("Reshape", state, graph.ints(-1, config.hidden_size))

    def _score_scale(self, layer: int) -> float:
        scale = 1 / sqrt(self.config.hidden_size // self.config.heads) if self.config.scales_scores else 1.0
        return scale / (layer + 1) if self.config.scales_by_layer else scale

    def _layer(self, state: str, hidden_scores: str, by_head: str, scale: float) -> str:
        graph, config = self.graph, self.config
        normal = self._normalise(state, "ln_1")
        with graph.scope("attn"):
            context = self._attention(normal, hidden_scores, by_head, scale)
            context = self._dense(context, "c_proj", config.hidden_size, config.hidden_size)
        state = graph.op("Add", context, state)
        normal = self._normalise(state, "ln_2")
        with graph.scope("mlp"):
            inner = self._dense(normal, "c_fc", config.hidden_size, config.inner_size)
            inner = ACTIVATIONS[config.activation](graph, inner, self.dtype)
            outer = self._dense(inner, "c_proj", config.inner_size, config.hidden_size)
        return graph.op("Add", outer, state)

    def _attention(self, state: str, hidden_scores: str, by_head: str, scale: float) -> str:
        """Return softmax(Q K^T * scale + hidden scores) V, [batch * sequence, n_embd]."""
        graph, hidden = self.graph, self.config.hidden_size
        packed = self._dense(state, "c_attn", hidden, 3 * hidden)
        query, key, value = graph.split(packed, hidden, hidden, hidden, axis=1)
        query = graph.op("Mul", query, graph.scalar(scale, self.dtype))
        query, key, value = (graph.op("Reshape", part, by_head) for part in (query, key, value))
        query = graph.op("Transpose", query, perm=[0, 2, 1, 3])
        key = graph.op("Transpose", key, perm=[0, 2, 3, 1])
        value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
        context = self.attend(query, key, value, hidden_scores)
        return graph.op("Reshape", context, graph.ints(-1, hidden))

    def _output(self, state: str, tokens: str, shape: str) -> None:
        graph, config = self.graph, self.config
        name, size = "last_hidden_state", config.hidden_size
        if config.has_head:
            name, size = "logits", config.vocab_size
            head = tokens if config.is_tied else graph.parameter(HEAD, self.dtype, [size, config.hidden_size])
            state = graph.op("Gemm", state, head, transB=1)
        state = graph.op("Reshape", state, graph.op("Concat", shape, graph.ints(size), axis=0))
        graph.output(name, self.to_f32(state), "F32", ["batch", "sequence", size])

    def _dense(self, value: str, name: str, inner: int, size: int) -> str:
        """Return value @ weight + bias for a value [rows, inner]."""
        weight = self.graph.parameter(f"{name}.weight", self.dtype, [inner, size])
        bias = self.graph.parameter(f"{name}.bias", self.dtype, [size])
        return self.graph.op("Gemm", value, weight, bias)

    def _normalise(self, value: str, name: str) -> str:
        return self.normalise(value, name, self.config.hidden_size, self.config.epsilon)
