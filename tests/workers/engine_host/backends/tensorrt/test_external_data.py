"""What the parser is given: a graph beside links, through which it finds every weight under its slot's name."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from app.definitions.parameter import InputSpec
from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import numpy_dtype
from tests.workers.engine_host.backends.tensorrt.compiled_graphs import definition_of, from_family, ocr_networks, stored
from tests.workers.engine_host.backends.tensorrt.test_layout import BERT, GPT2
from tests.workers.networks import Network, attention, convolution, from_onnx, network_of
from workers.channel.messages import BackendError
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt import external_data as graph
from workers.engine_host.backends.tensorrt.layout import LAYOUTS, lay_out, slot_value
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.tensors import Array, MappedFiles, StoredValue


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "compile"
    folder.mkdir()
    return folder


def read(path: Path) -> dict[str, Array]:
    """Read the values of the initializers without one, as a parser does."""
    model = onnx_graph.parse(path.read_bytes())
    arrays = {}
    for name, one in onnx_graph.parameters_of(model).items():
        where = {entry.key: entry.value for entry in one.external_data}
        assert Path(where["location"]).name == where["location"]
        data = (path.parent / where["location"]).read_bytes()[int(where["offset"]) :][: int(where["length"])]
        dtype = numpy_dtype(DTYPE_NAMES[one.data_type])
        arrays[name] = np.frombuffer(data, np.uint8).view(dtype).reshape(tuple(one.dims))
    return arrays


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [attention, convolution])
def test_every_slot_is_found_beside_the_graph(make: Any, layout: str, tmp_path: Path, folder: Path) -> None:  # noqa: ANN401 - either
    network: Network = make(tmp_path / "graph.onnx")
    laid_out, values = lay_out(definition_of(network), layout), stored(network)
    found = read(graph.write(laid_out, values, folder))

    assert list(found) == [slot.name for slot in laid_out.slots]
    for slot in laid_out.slots:
        np.testing.assert_array_equal(found[slot.name], slot_value(slot, values, MappedFiles()), strict=True)


def test_weights_are_linked_and_only_computed_ones_written(tmp_path: Path, folder: Path) -> None:
    network = convolution(tmp_path / "graph.onnx")
    laid_out, values = lay_out(definition_of(network)), stored(network)
    graph.write(laid_out, values, folder)

    links = [one for one in folder.iterdir() if one.is_symlink()]
    assert {one.resolve() for one in links} == {tmp_path / "graph.safetensors", folder / "computed"}
    slots = onnx_graph.parameters_of(laid_out.model)
    kept = graph.store_slots(laid_out, values, tmp_path / "computed")
    assert {name for name in slots if kept[name] is values.get(name)} == {"out.weight", "out.shift", "out.gain"}


def test_names_for_the_same_bytes_are_reached_through_links_of_their_own(tmp_path: Path, folder: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "in"], ["h"]), helper.make_node("MatMul", ["h", "out"], ["y"])]
    square = ("F32", (4, 4))
    rows = InputSpec("x", "F32", ("rows", 4))
    network = network_of(tmp_path / "graph.onnx", nodes, {"in": square, "out": square}, (rows,), {"y": "F32"})
    values = stored(network)
    values["out"] = values["in"]
    path = graph.write(lay_out(definition_of(network)), values, folder)

    parameters = onnx_graph.parameters_of(onnx_graph.parse(path.read_bytes())).values()
    assert [one.external_data[0].value for one in parameters] == ["0.bin", "1.bin"]
    one, other = read(path).values()
    np.testing.assert_array_equal(one, other)
    assert unnamed_weights(path) == []


def test_an_empty_tensor_is_embedded(folder: Path) -> None:
    model = ModelProto()
    model.graph.initializer.add(name="none", data_type=TensorProto.FLOAT, dims=[0, 4], data_location=1)
    pointed = graph.point_slots(model, {"none": StoredValue("/nowhere", 0, 0, "F32", (0, 4))}, folder)

    (tensor,) = pointed.graph.initializer
    assert (tensor.data_location, tensor.raw_data, list(tensor.external_data)) == (TensorProto.DEFAULT, b"", [])
    assert onnx.numpy_helper.to_array(tensor).shape == (0, 4)
    assert model.graph.initializer[0].data_location == TensorProto.EXTERNAL


@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_missing_and_wrong_values_are_refused_before_the_parser_sees_them(
    layout: str, tmp_path: Path, folder: Path
) -> None:
    network = convolution(tmp_path / "graph.onnx")
    laid_out, values = lay_out(definition_of(network), layout), stored(network)
    for name in network.parameters:
        for one in folder.iterdir():
            one.unlink()
        with pytest.raises(BackendError, match="missing_weights"):
            graph.write(laid_out, {key: value for key, value in values.items() if key != name}, folder)
    wrong = StoredValue(values["out.weight"].path, 0, 8, "F32", (2,))
    for name in ("conv.weight", "out.weight", "out.shift"):
        for one in folder.iterdir():
            one.unlink()
        with pytest.raises(BackendError, match="wrong_weights"):
            graph.write(laid_out, values | {name: wrong}, folder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [BERT, GPT2], ids=["bert", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_knows_each_slot_of_a_transformer_by_name(
    config: dict[str, Any], precision: str, layout: str, tmp_path: Path, folder: Path
) -> None:
    network = from_family(config, precision, tmp_path / "graph.onnx")
    assert unnamed_weights(graph.write(lay_out(definition_of(network), layout), stored(network), folder)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("file", ocr_networks(), ids=lambda file: file.stem)
def test_tensorrt_knows_each_slot_of_a_convolutional_network_by_name(
    file: Path, layout: str, tmp_path: Path, folder: Path
) -> None:
    network = from_onnx(file, tmp_path / "graph.onnx")
    assert unnamed_weights(graph.write(lay_out(definition_of(network), layout), stored(network), folder)) == []


def unnamed_weights(path: Path) -> list[str]:
    """Parse a graph and return the initializers without a value that TensorRT knows no weight of that name for."""
    if not hasattr(trt.INetworkDefinition, "mark_weights_refittable"):
        pytest.skip("this TensorRT tells names only of a compiled engine")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    names = onnx_graph.parameters_of(onnx_graph.parse(path.read_bytes()))
    return [name for name in names if not network.mark_weights_refittable(name)]
