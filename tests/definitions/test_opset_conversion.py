"""Graphs converted to another opset compute the same, or are refused with what stands in the way."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, load_model, numpy_helper
from onnx.helper import make_graph, make_node, make_tensor_value_info

from app.children.house import House
from app.definitions import sandbox
from app.definitions.canonical_graph import canonical_bytes
from app.definitions.opset_conversion import convert_opset
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import tensor_bytes
from app.definitions.weight_split import SplitModel, split_weights
from tests.definitions.conftest import OpenSession

Make = Callable[..., ModelProto]


def reduced(make: Make, opset: int, *, body: bool = False) -> ModelProto:
    """Means over one set of axes, used twice, and once more in the branch of an If."""
    tensors = [numpy_helper.from_array(np.array([1]), "axes"), numpy_helper.from_array(np.full(4, 2, np.float32), "w")]
    result = [make_tensor_value_info("r", 1, None)]
    branch = make_graph([make_node("ReduceMean", ["b", "axes"], ["r"])], "branch", [], result)
    nodes = [
        make_node("ReduceMean", ["x", "axes"], ["a"]),
        make_node("Mul", ["a", "w"], ["m"]),
        make_node("ReduceMean", ["m", "axes"], ["b" if body else "y"]),
    ]
    if body:
        yes = numpy_helper.from_array(np.array([1], np.bool_))
        nodes += [make_node("Constant", [], ["yes"], value=yes)]
        nodes += [make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    return make(nodes, tensors, opset=opset)


def outputs(
    model: ModelProto, split: SplitModel, folder: Path, open_session: OpenSession, x: np.ndarray
) -> list[np.ndarray]:
    (folder / "graph.onnx").write_bytes(canonical_bytes(model))
    weights = {
        name: np.frombuffer(tensor_bytes(one), np.float32).reshape(tuple(one.dims))
        for name, one in split.weights.items()
    }
    found: list[np.ndarray] = open_session(folder / "graph.onnx", weights).run(None, {"x": x})
    return found


@pytest.mark.parametrize("opset", [14, 17, 21, 24])
def test_a_converted_graph_computes_the_same(
    tiny_model: Make, tmp_path: Path, open_session: OpenSession, opset: int
) -> None:
    split = split_weights(reduced(tiny_model, 18))
    converted = convert_opset(split.model, opset)
    x = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    assert [one.version for one in converted.opset_import] == [opset]
    before, after = (outputs(model, split, tmp_path, open_session, x) for model in (split.model, converted))
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6)


def test_a_published_network_computes_the_same(tmp_path: Path, open_session: OpenSession) -> None:
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    split = split_weights(load_model(path))
    x = np.random.default_rng(3).standard_normal((2, 3, 48, 192)).astype(np.float32)
    converted = convert_opset(split.model, 17)
    got = outputs(converted, split, tmp_path, open_session, x)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(got[0], session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-6)


def test_an_operator_that_the_opset_lacks_is_named(tiny_model: Make) -> None:
    split = split_weights(tiny_model([make_node("Gelu", ["x"], ["y"])], opset=20))
    with pytest.raises(Rejected, match=r"from opset 20 to 17.*Gelu") as error:
        convert_opset(split.model, 17)
    assert error.value.code == "opset_not_convertible"
    assert "opset_version=17" in error.value.detail


def test_a_body_that_the_library_would_leave_as_it_is_is_refused(tiny_model: Make) -> None:
    split = split_weights(reduced(tiny_model, 18, body=True))
    with pytest.raises(Rejected, match="ReduceMean inside a body"):
        convert_opset(split.model, 17)
    assert convert_opset(split.model, 20).opset_import[0].version == 20


def test_a_file_is_converted_where_it_is_parsed(tiny_model: Make, tmp_path: Path, house: House) -> None:
    path = tmp_path / "upload.onnx"
    path.write_bytes(reduced(tiny_model, 18).SerializeToString())
    with sandbox.construct_from_file(house, path, opset=17) as made:
        assert (made.source["opset"], made.source["converted_from"]) == (17, 18)
        assert made.parameter_count == 1
        assert [name for name, *_ in json.loads(made.parameters)] == ["w"]
