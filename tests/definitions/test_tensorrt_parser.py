"""What families make, read by the ONNX parser of TensorRT for RTX, which needs no GPU."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from app.definitions.family import Precision, family_names, load_family
from app.definitions.interface import read_interface
from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import DTYPES

trt: Any = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

from workers.engine_host.backends.tensorrt.log import process_log  # noqa: E402 - needs the library, and is the process's only one

GOLDEN = Path(__file__).parents[1] / "golden" / "families"


def with_values(model: onnx.ModelProto) -> bytes:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            count = 1
            for extent in tensor.dims:
                count *= extent
            tensor.raw_data = bytes(count * DTYPES[DTYPE_NAMES[tensor.data_type]].itemsize)
    return model.SerializeToString()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", family_names())
def test_tensorrt_parses_a_family_and_keeps_each_parameters_name(
    family: str, precision: Precision, tmp_path: Path
) -> None:
    config = json.loads((GOLDEN / f"{family}.json").read_text())["config"]
    model = load_family(family).build(config, precision).model
    interface = read_interface(model)
    file = tmp_path / "definition.onnx"
    file.write_bytes(with_values(model))
    logger = process_log()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)

    parsed = parser.parse_from_file(str(file))

    assert [parser.get_error(index).desc() for index in range(parser.num_errors)] == []
    assert parsed
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    constants = [layer.name for layer in layers if layer.type == trt.LayerType.CONSTANT]
    assert {one.name: constants.count(one.name) for one in interface.parameters} == {
        one.name: 1 for one in interface.parameters
    }
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert [(one.name, one.dtype) for one in outputs] == [(one.name, trt.float32) for one in interface.outputs]
