"""The family graph against GPT-2 computed with numpy, after transformers' modeling_gpt2.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from app.bindings.binding import bind
from app.bindings.report import BindingReport
from app.bindings.rules import parse_rules
from app.definitions.canonical_graph import canonical_bytes
from app.definitions.families.gpt2 import build
from app.definitions.family import Precision
from app.definitions.interface import read_interface
from app.definitions.rejection import Rejected
from app.weights.manifest import TensorEntry
from tests.definitions.conftest import OpenSession, Tensors

Config = Mapping[str, Any]
Array = np.ndarray[Any, np.dtype[Any]]

TINY: Config = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_positions": 16,
    "n_ctx": 16,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": None,
    "activation_function": "gelu_new",
}
DTYPES = {"float32": "F32", "float16": "F16", "bool": "BOOL"}
IDS = np.array([[5, 60, 0, 7, 7, 31], [9, 1, 2, 44, 3, 3]], np.int64)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int64)


def checkpoint(config: Config, prefix: str = "", seed: int = 3) -> dict[str, Array]:
    """Random tensors under the names, and with the buffers, of GPT2LMHeadModel."""
    rng = np.random.default_rng(seed)
    built = build({**TINY, **config}, "fp32")
    tensors: dict[str, Array] = {}
    for parameter in read_interface(built.model).parameters:
        values = rng.standard_normal(parameter.shape).astype(np.float32) * np.float32(0.3)
        name = parameter.name if parameter.name == "lm_head.weight" else prefix + parameter.name
        tensors[name] = values + 1 if ".ln_" in f".{parameter.name}" and name.endswith("weight") else values
    for layer in range(int(built.config["n_layer"])):
        tensors[f"{prefix}h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), bool))
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    return tensors


def bound(config: Config, tensors: Tensors, precision: Precision = "fp32") -> BindingReport:
    built = build({**TINY, **config}, precision)
    entries = {
        name: TensorEntry(name, DTYPES[str(one.dtype)], one.shape, "0" * 64, "", 0, one.nbytes)
        for name, one in tensors.items()
    }
    return bind(read_interface(built.model).parameters, entries, (), parse_rules(list(built.rules)))


def answer(
    config: Config,
    tensors: Tensors,
    open_session: OpenSession,
    folder: Path,
    precision: Precision = "fp32",
    *,
    ids: Array = IDS,
    mask: Array = MASK,
) -> Array:
    report = bound(config, tensors, precision)
    assert report.problems == ()
    weights = {b.parameter: b.apply([tensors[name] for name in b.tensors]) for b in report.bindings}
    path = folder / "gpt2.onnx"
    path.write_bytes(canonical_bytes(build({**TINY, **config}, precision).model))
    (output,) = open_session(path, weights).run(None, {"input_ids": ids, "attention_mask": mask})
    result: Array = output
    return result


def reference(config: Config, weights: Tensors, mask: Array = MASK) -> Array:
    """GPT2LMHeadModel in float64, a loop over rows, layers, heads and queries."""
    return np.stack([_row({**TINY, **config}, weights, *row) for row in zip(IDS, mask, strict=True)])


def _row(config: Config, weights: Tensors, ids: Array, mask: Array) -> Array:
    w = {name: np.asarray(one, np.float64) for name, one in weights.items()}
    heads = config["n_head"]
    state = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for layer in range(config["n_layer"]):
        h = f"h.{layer}"
        size = state.shape[1] // heads
        scale = size**-0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx"):
            scale /= layer + 1
        packed = _normal(state, w, f"{h}.ln_1") @ w[f"{h}.attn.c_attn.weight"] + w[f"{h}.attn.c_attn.bias"]
        queries, keys, values = np.split(packed, 3, axis=1)
        context = np.zeros_like(state)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for at in range(len(ids)):
                seen = [key for key in range(at + 1) if mask[key]]
                if seen:  # a hidden token with nothing shown before it; no other sees what becomes of it
                    scores = np.exp(keys[seen, part] @ queries[at, part] * scale)
                    context[at, part] = scores / scores.sum() @ values[seen, part]
        state = state + context @ w[f"{h}.attn.c_proj.weight"] + w[f"{h}.attn.c_proj.bias"]
        inner = _normal(state, w, f"{h}.ln_2") @ w[f"{h}.mlp.c_fc.weight"] + w[f"{h}.mlp.c_fc.bias"]
        inner = _activation(config["activation_function"], inner)
        state = state + inner @ w[f"{h}.mlp.c_proj.weight"] + w[f"{h}.mlp.c_proj.bias"]
    state = _normal(state, w, "ln_f")
    if not config.get("add_lm_head", True):
        return state
    return np.asarray(state @ w[config.get("head", "wte.weight")].T)


def _normal(x: Array, w: Tensors, name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return np.asarray(normal * w[f"{name}.weight"] + w[f"{name}.bias"])


def _activation(name: str, x: Array) -> Array:
    if name == "relu":
        return np.maximum(x, 0)
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_inner": 40},
        {"activation_function": "relu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_lm_head": False},
        {"tie_word_embeddings": False, "head": "lm_head.weight"},
        {"n_layer": 1, "n_head": 1},
    ],
    ids=str,
)
def test_equals_the_model_computed_with_numpy(config: Config, open_session: OpenSession, tmp_path: Path) -> None:
    weights = checkpoint(config)
    logits = answer(config, weights, open_session, tmp_path)
    expected = reference(config, weights)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


def test_fp16_stays_near_fp32(open_session: OpenSession, tmp_path: Path) -> None:
    weights = checkpoint({})
    logits = answer({}, weights, open_session, tmp_path, "fp16")
    assert logits.dtype == np.float32
    expected = reference({}, weights)
    np.testing.assert_allclose(logits, expected, atol=2e-2 * np.abs(expected).max())


def test_a_token_does_not_change_those_before_it(open_session: OpenSession, tmp_path: Path) -> None:
    weights = checkpoint({})
    before = answer({}, weights, open_session, tmp_path)
    after = answer({}, weights, open_session, tmp_path, ids=np.where(np.arange(6) == 3, 11, IDS))
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert np.abs(after[0, 3:] - before[0, 3:]).max(-1).min() > 1e-3


def test_a_hidden_token_changes_no_other(open_session: OpenSession, tmp_path: Path) -> None:
    weights = checkpoint({})
    mask = np.where(np.arange(6) == 2, 0, np.ones_like(IDS))
    before = answer({}, weights, open_session, tmp_path, mask=mask)
    after = answer({}, weights, open_session, tmp_path, mask=mask, ids=np.where(np.arange(6) == 2, 11, IDS))
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(after[:, others], before[:, others])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_padding_on_the_left_leaves_the_shown_tokens_right(
    precision: Precision, open_session: OpenSession, tmp_path: Path
) -> None:
    mask = np.array([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]], np.int64)
    weights = checkpoint({})
    logits = answer({}, weights, open_session, tmp_path, precision, mask=mask)
    expected = reference({}, weights, mask)
    assert np.isfinite(logits).all()
    tolerance = {"fp32": 1e-4, "fp16": 2e-2 * np.abs(expected).max()}[precision]
    np.testing.assert_allclose(logits[mask == 1], expected[mask == 1], atol=tolerance, rtol=1e-4)


def test_a_sequence_longer_than_the_positions_fails(open_session: OpenSession, tmp_path: Path) -> None:
    with pytest.raises(Fail):
        answer({"n_positions": 5}, checkpoint({"n_positions": 5}), open_session, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_checkpoints_bind_with_and_without_the_prefix(prefix: str, precision: Precision) -> None:
    tensors = checkpoint({}, prefix)
    report = bound({}, tensors, precision)
    assert report.problems == ()
    assert {b.tensors for b in report.bindings} == {(name,) for name in tensors if not name.endswith(".attn.bias")} - {
        (f"{prefix}h.{layer}.attn.masked_bias",) for layer in range(2)
    }


@pytest.mark.parametrize("saved", ["wte.weight", "lm_head.weight"])
def test_a_tied_table_binds_under_either_name(saved: str) -> None:
    tensors = checkpoint({})
    tensors[saved] = tensors.pop("wte.weight")
    report = bound({}, tensors)
    assert report.problems == ()
    assert {b.parameter: b.tensors for b in report.bindings}["wte.weight"] == (saved,)


def test_a_checkpoint_that_repeats_the_tied_table_binds() -> None:
    tensors = checkpoint({})
    assert bound({}, {**tensors, "lm_head.weight": tensors["wte.weight"]}).ok


def test_an_untied_head_needs_its_tensor() -> None:
    problems = bound({"tie_word_embeddings": False}, checkpoint({})).problems
    assert [(problem.kind, problem.parameter) for problem in problems] == [("missing", "lm_head.weight")]


def test_tied_weights_are_one_parameter_used_twice() -> None:
    model = build(TINY, "fp32").model
    uses = [node.op_type for node in model.graph.node if "wte.weight" in node.input]
    assert sorted(uses) == ["Gather", "Gemm"]
    assert "lm_head.weight" not in {p.name for p in read_interface(model).parameters}


def test_parameters_are_conv1d_weights_as_checkpoints_have_them() -> None:
    parameters = {p.name: p.shape for p in read_interface(build(TINY, "fp32").model).parameters}
    assert parameters["wte.weight"] == (61, 24)
    assert parameters["wpe.weight"] == (16, 24)
    assert parameters["h.1.attn.c_attn.weight"] == (24, 72)
    assert parameters["h.1.mlp.c_fc.weight"] == (24, 96)
    assert parameters["h.1.mlp.c_proj.weight"] == (96, 24)
    assert len(parameters) == 2 + 2 * 12 + 2


def test_fp16_makes_every_parameter_f16() -> None:
    assert {p.dtype for p in read_interface(build(TINY, "fp16").model).parameters} == {"F16"}


def test_inputs_know_how_large_ids_may_be() -> None:
    interface = read_interface(build(TINY, "fp32").model)
    assert {spec.name: spec.high for spec in interface.inputs} == {"input_ids": 61, "attention_mask": None}
    assert all(spec.shape == ("batch", "sequence") and spec.dtype == "I64" for spec in interface.inputs)
    assert [(one.name, one.dtype, one.shape) for one in interface.outputs] == [
        ("logits", "F32", ("batch", "sequence", 61))
    ]
    assert interface.warnings == ()


def test_missing_keys_have_the_defaults_of_transformers() -> None:
    built = build({}, "fp32")
    assert {
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": 3072,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }.items() <= built.config.items()


def test_constants_stay_small_however_many_positions() -> None:
    model = build({**TINY, "n_positions": 4096}, "fp32").model
    stored = [tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(tensor.raw_data) for tensor in stored) < 9 * 4096


def test_stays_within_what_tensorrt_parses() -> None:
    model = build(TINY, "fp16").model
    assert model.opset_import[0].version == 17
    assert not any(node.attribute for node in model.graph.node if node.op_type == "Shape")
    assert not {node.op_type for node in model.graph.node} & {"Range", "Trilu", "CumSum"}


def test_same_config_gives_same_bytes() -> None:
    first, second = (canonical_bytes(build(TINY, "fp32").model) for _ in range(2))
    assert first == second
    assert canonical_bytes(build({**TINY, "n_layer": 3}, "fp32").model) != first


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_passes_the_full_onnx_check(precision: Precision) -> None:
    model = build(TINY, precision).model
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = bytes({"fp32": 4, "fp16": 2}[precision] * int(np.prod(tensor.dims)))
    onnx.checker.check_model(model, full_check=True)


def test_names_every_unsupported_value_at_once() -> None:
    config = {
        "model_type": "gptj",
        "activation_function": "mish",
        "n_head": 7,
        "n_inner": 0,
        "vocab_size": -1,
        "layer_norm_epsilon": "small",
        "add_lm_head": "no",
        "tie_word_embeddings": 1,
        "scale_attn_weights": "yes",
        "add_cross_attention": True,
        "quantization_config": {"bits": 4},
        "hidden_size": 1024,
    }
    with pytest.raises(Rejected) as raised:
        build(config, "fp32")
    assert raised.value.code == "unsupported_config"
    assert {error.pointer for error in raised.value.errors} == {f"/config/{key}" for key in config}


def test_other_names_of_a_key_are_taken_where_they_agree() -> None:
    same = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16}
    assert canonical_bytes(build({**TINY, **same}, "fp32").model) == canonical_bytes(build(TINY, "fp32").model)
