"""BERT encoders: `BertModel` of Hugging Face transformers, for inference.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2018), and
transformers' `modeling_bert.py` and `configuration_bert.py`, whose parameter names and defaults hold here.

Inputs, all I64 [batch, sequence]: input_ids, attention_mask (0 hides a token, anything else shows it) and
token_type_ids. A sequence longer than `max_position_embeddings` fails when it runs. Outputs, F32 in either
precision: last_hidden_state [batch, sequence, hidden] and, unless the config says `"add_pooling_layer": false`,
pooler_output [batch, hidden].

Precision fp16 makes every parameter F16; softmax and the inner part of LayerNormalization are computed in F32.
Hidden states are kept as [batch * sequence, hidden] between the layers, the form Gemm takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

from onnx import ModelProto, TensorProto

from app.definitions.family import FamilyGraph, Precision
from app.definitions.family_parts.activations import ACTIVATIONS
from app.definitions.family_parts.config import ConfigReader
from app.definitions.family_parts.layers import Layers

HIDDEN_SCORE: Final = -65504.0  # the lowest F16: exp() of it is 0, and no precision turns it into infinity


def build(config: Mapping[str, Any], precision: Precision) -> FamilyGraph:
    """Build the graph of a BERT config; raises Rejected with every fault of the config."""
    bert = BertConfig.read(config)
    dtype = {"fp32": "F32", "fp16": "F16"}[precision]
    model = BertGraph(bert, dtype).build()
    return FamilyGraph(model, default_rules(dtype), bert.used)


def default_rules(dtype: str) -> list[Mapping[str, Any]]:
    """Return the rules that let a checkpoint of `BertModel` bind as it is."""
    rules: list[Mapping[str, Any]] = [{"ignore": r"(bert\.)?embeddings\.position_ids"}]
    if dtype != "F32":
        cast = {"op": "cast", "dtype": dtype}
        rules.append({"parameter": "(.*)", "tensors": [r"\1"], "transforms": [cast]})
    return rules


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The keys of a config that shape the graph; `used` is all of them as read, defaults included."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    activation: str
    positions: int
    token_types: int
    epsilon: float
    has_pooler: bool
    used: Mapping[str, Any]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Read a config.json; raises Rejected with every fault."""
        reader = ConfigReader(config)
        reader.choice("model_type", "bert", {"bert"})
        reader.choice("position_embedding_type", "absolute", {"absolute"})
        reader.refuse("is_decoder", "only encoders are built")
        reader.refuse("add_cross_attention", "only encoders are built")
        reader.refuse("pruned_heads", "save the pruned model with its heads in place")
        reader.refuse("quantization_config", "dequantise the checkpoint first")
        bert = cls(
            vocab_size=reader.size("vocab_size", 30522, most=10_000_000),
            hidden_size=reader.size("hidden_size", 768, most=65536),
            layers=reader.size("num_hidden_layers", 12, most=512),
            heads=reader.size("num_attention_heads", 12, most=1024),
            intermediate_size=reader.size("intermediate_size", 3072, most=1_000_000),
            activation=reader.choice("hidden_act", "gelu", ACTIVATIONS),
            positions=reader.size("max_position_embeddings", 512, most=10_000_000),
            token_types=reader.size("type_vocab_size", 2, most=65536),
            epsilon=reader.small_positive("layer_norm_eps", 1e-12),
            has_pooler=reader.flag("add_pooling_layer", default=True),
            used=reader.used,
        )
        if bert.hidden_size % bert.heads:
            reader.fault("num_attention_heads", f"{bert.heads} heads do not divide hidden_size {bert.hidden_size}")
        reader.finish()
        return bert


class BertGraph(Layers):
    """Writes the graph of one config."""

    def __init__(self, config: BertConfig, dtype: str) -> None:
        super().__init__(dtype)
        self.config = config

    def build(self) -> ModelProto:
        """Return the model."""
        graph, config = self.graph, self.config
        ids, mask, types = (
            graph.input(name, "I64", ["batch", "sequence"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        shape = graph.op("Shape", ids)
        by_head = graph.op("Concat", shape, graph.ints(config.heads, config.hidden_size // config.heads), axis=0)
        hidden_scores = self._hidden_scores(mask)
        with graph.scope("embeddings"):
            state = self._embeddings(ids, types, shape)
        for layer in range(config.layers):
            with graph.scope(f"encoder.layer.{layer}"):
                state = self._layer(state, hidden_scores, by_head)
        self._outputs(state, shape)
        return graph.finish()

    def _hidden_scores(self, mask: str) -> str:
        """Return what is added to attention scores, F32 [batch, 1, 1, sequence]."""
        graph = self.graph
        shown = graph.op("Cast", mask, to=TensorProto.BOOL)
        scores = graph.op("Where", shown, graph.scalar(0.0, "F32"), graph.scalar(HIDDEN_SCORE, "F32"))
        return graph.op("Unsqueeze", scores, graph.ints(1, 2))

    def _embeddings(self, ids: str, types: str, shape: str) -> str:
        graph, config = self.graph, self.config
        words = self._table("word_embeddings", config.vocab_size)
        positions = self._table("position_embeddings", config.positions)
        token_types = self._table("token_type_embeddings", config.token_types)
        total = graph.op("Add", graph.op("Gather", words, ids), graph.op("Gather", token_types, types))
        length = graph.op("Gather", shape, graph.ints(1))
        positions = graph.op("Slice", positions, graph.ints(0), length, graph.ints(0))
        state = self._normalise(graph.op("Add", total, positions), "LayerNorm")
        return graph.op("Reshape", state, graph.ints(-1, config.hidden_size))

    def _layer(self, state: str, hidden_scores: str, by_head: str) -> str:
        graph, config = self.graph, self.config
        with graph.scope("attention.self"):
            context = self._attention(state, hidden_scores, by_head)
        with graph.scope("attention.output"):
            state = self._normalise(graph.op("Add", self._dense(context, config.hidden_size), state), "LayerNorm")
        with graph.scope("intermediate"):
            inner = ACTIVATIONS[config.activation](graph, self._dense(state, config.intermediate_size), self.dtype)
        with graph.scope("output"):
            outer = self._dense(inner, config.hidden_size, config.intermediate_size)
            return self._normalise(graph.op("Add", outer, state), "LayerNorm")

    def _attention(self, state: str, hidden_scores: str, by_head: str) -> str:
        """Return softmax(Q K^T / sqrt(d) + hidden scores) V, [batch * sequence, hidden]."""
        graph, config = self.graph, self.config
        scale = graph.scalar(1 / sqrt(config.hidden_size // config.heads), self.dtype)
        query, key, value = (
            graph.op("Reshape", self._dense(state, config.hidden_size, name=name), by_head)
            for name in ("query", "key", "value")
        )
        query = graph.op("Transpose", graph.op("Mul", query, scale), perm=[0, 2, 1, 3])
        key = graph.op("Transpose", key, perm=[0, 2, 3, 1])
        value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
        context = self.attend(query, key, value, hidden_scores)
        return graph.op("Reshape", context, graph.ints(-1, config.hidden_size))

    def _outputs(self, state: str, shape: str) -> None:
        graph, hidden = self.graph, self.config.hidden_size
        state = graph.op("Reshape", state, graph.op("Concat", shape, graph.ints(hidden), axis=0))
        graph.output("last_hidden_state", self.to_f32(state), "F32", ["batch", "sequence", hidden])
        if not self.config.has_pooler:
            return
        with graph.scope("pooler"):
            first = graph.op("Gather", state, graph.index(0), axis=1)
            pooled = graph.op("Tanh", self._dense(first, hidden))
        graph.output("pooler_output", self.to_f32(pooled), "F32", ["batch", hidden])

    def _table(self, name: str, rows: int) -> str:
        return self.graph.parameter(f"{name}.weight", self.dtype, [rows, self.config.hidden_size])

    def _dense(self, value: str, size: int, inner: int | None = None, *, name: str = "dense") -> str:
        """Return value @ weight^T + bias for a value [rows, inner]; `inner` is hidden_size unless given."""
        weight = self.graph.parameter(f"{name}.weight", self.dtype, [size, inner or self.config.hidden_size])
        bias = self.graph.parameter(f"{name}.bias", self.dtype, [size])
        return self.graph.op("Gemm", value, weight, bias, transB=1)

    def _normalise(self, value: str, name: str) -> str:
        return self.normalise(value, name, self.config.hidden_size, self.config.epsilon)
