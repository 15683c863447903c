"""The table of TensorRT-RTX against its parser, which is asked about every operator; no GPU is needed."""

from onnx.defs import get_all_schemas_with_history

from tests.workers.engine_host.backends.tensorrt.cpu_compilation import needs_rtx
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.log import process_log
from workers.engine_host.backends.tensorrt.parser_tables import parser_table

OPERATORS = sorted({schema.name for schema in get_all_schemas_with_history() if schema.domain == ""})


@needs_rtx
def test_the_table_says_what_the_parser_says() -> None:
    table = parser_table(NAME, trt.__version__)
    assert table is not None
    builder = trt.Builder(process_log())
    parser = trt.OnnxParser(builder.create_network(0), process_log())
    known = {name for name in OPERATORS if parser.supports_operator(name)}
    assert known == table.operators.keys()
    assert set(OPERATORS) - known == table.lacks
