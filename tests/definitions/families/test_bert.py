"""The family graph against transformers' BertModel on real weights; tests/golden/make_bert.py made the answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from app.bindings.binding import bind
from app.bindings.rules import parse_rules
from app.definitions.canonical_graph import canonical_bytes
from app.definitions.families.bert import build
from app.definitions.family import Precision
from app.definitions.interface import read_interface
from app.definitions.rejection import Rejected
from app.weights.manifest import TensorEntry
from tests.definitions.conftest import OpenSession, Tensors

Config = dict[str, Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "bert_minilm.json"


@pytest.fixture(scope="module")
def config(minilm: Path) -> Config:
    loaded: Config = json.loads((minilm / "config.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def checkpoint(minilm: Path) -> Tensors:
    return load_file(minilm / "model.safetensors")


def entries(checkpoint: Tensors) -> dict[str, TensorEntry]:
    dtypes = {"float32": "F32", "int64": "I64"}
    return {
        name: TensorEntry(name, dtypes[str(array.dtype)], array.shape, "0" * 64, "", 0, array.nbytes)
        for name, array in checkpoint.items()
    }


def answers(
    precision: Precision, config: Config, checkpoint: Tensors, open_session: OpenSession, folder: Path
) -> tuple[Tensors, Config]:
    built = build(config, precision)
    report = bind(read_interface(built.model).parameters, entries(checkpoint), parse_rules(list(built.rules)))
    assert report.problems == ()
    weights = {b.parameter: b.apply([checkpoint[name] for name in b.tensors]) for b in report.bindings}
    path = folder / "bert.onnx"
    path.write_bytes(canonical_bytes(built.model))
    golden = json.loads(GOLDEN.read_text())
    feeds = {name: np.array(rows, np.int64) for name, rows in golden["inputs"].items()}
    names = list(golden["outputs"])
    return dict(zip(names, open_session(path, weights).run(names, feeds), strict=True)), golden["outputs"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-5), ("fp16", 2e-2)])
def test_equals_transformers(
    precision: Precision,
    tolerance: float,
    config: Config,
    checkpoint: Tensors,
    open_session: OpenSession,
    tmp_path: Path,
) -> None:
    outputs, golden = answers(precision, config, checkpoint, open_session, tmp_path)
    for name, wanted in golden.items():
        rows = outputs[name].reshape(-1, outputs[name].shape[-1])
        assert outputs[name].dtype == np.float32
        assert list(outputs[name].shape) == wanted["shape"]
        np.testing.assert_allclose(rows[:, : len(wanted["head"][0])], wanted["head"], atol=tolerance)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), wanted["norm"], rtol=tolerance)


def test_parameters_are_the_tensors_of_the_checkpoint(config: Config, checkpoint: Tensors) -> None:
    parameters = {p.name: p.shape for p in read_interface(build(config, "fp32").model).parameters}
    wanted = {name: array.shape for name, array in checkpoint.items() if name != "embeddings.position_ids"}
    assert parameters == wanted


def test_fp16_makes_every_parameter_f16(config: Config) -> None:
    assert {p.dtype for p in read_interface(build(config, "fp16").model).parameters} == {"F16"}


def test_inputs_know_how_large_ids_may_be(config: Config) -> None:
    inputs = {spec.name: spec for spec in read_interface(build(config, "fp32").model).inputs}
    assert {name: spec.high for name, spec in inputs.items()} == {
        "input_ids": 30522,
        "attention_mask": None,
        "token_type_ids": 2,
    }
    assert all(spec.shape == ("batch", "sequence") and spec.dtype == "I64" for spec in inputs.values())


def test_leaves_the_pooler_out_when_told(config: Config) -> None:
    interface = read_interface(build({**config, "add_pooling_layer": False}, "fp32").model)
    assert [output.name for output in interface.outputs] == ["last_hidden_state"]
    assert not any(p.name.startswith("pooler") for p in interface.parameters)


def test_stays_within_what_tensorrt_parses(config: Config) -> None:
    model = build(config, "fp32").model
    assert model.opset_import[0].version == 17
    assert not any(node.attribute for node in model.graph.node if node.op_type == "Shape")


def test_same_config_gives_same_bytes(config: Config) -> None:
    first, second = (canonical_bytes(build(config, "fp32").model) for _ in range(2))
    assert first == second
    assert canonical_bytes(build({**config, "num_hidden_layers": 5}, "fp32").model) != first


def test_missing_keys_have_the_defaults_of_transformers() -> None:
    built = build({}, "fp32")
    assert built.config["hidden_size"] == 768
    assert built.config["num_hidden_layers"] == 12
    assert built.config["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu", "quick_gelu", "tanh"])
def test_every_activation_makes_a_valid_graph(activation: str) -> None:
    built = build({"hidden_act": activation, "num_hidden_layers": 1}, "fp16")
    assert read_interface(built.model).warnings == ()


def test_names_every_unsupported_value_at_once() -> None:
    config = {
        "model_type": "roberta",
        "hidden_act": "mish",
        "position_embedding_type": "relative_key",
        "is_decoder": True,
        "num_attention_heads": 7,
        "vocab_size": -1,
        "layer_norm_eps": "small",
        "add_pooling_layer": "no",
        "quantization_config": {"bits": 4},
    }
    with pytest.raises(Rejected) as raised:
        build(config, "fp32")
    assert raised.value.code == "unsupported_config"
    assert {error.pointer for error in raised.value.errors} == {f"/config/{key}" for key in config}


def test_graph_passes_the_full_onnx_check(config: Config) -> None:
    model = build({**config, "num_hidden_layers": 1}, "fp16").model
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = bytes(2 * int(np.prod(tensor.dims)))
    onnx.checker.check_model(model, full_check=True)
