"""The published ONNX files without the files: what decides whether a parser takes each, as TensorRT 8.6 gets it.

python -m benchmarks.published_facts FOLDER    after `python -m benchmarks.published fetch FOLDER`

Written to `tests/data/published_graphs.json`: by name the opset, and the facts of the nodes, each with its count. Tests
hold the tables of parsers against it, and against what the card said (`results/published-tensorrt.json`).
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from app.definitions.construction import construct
from app.definitions.parameter import InputSpec
from benchmarks.published import Published, exact_profile, listed, path_of
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import lay_out
from workers.engine_host.backends.tensorrt.normalised import normalised_layout
from workers.engine_host.backends.tensorrt.parser_tables import parser_table, parser_tables
from workers.engine_host.preflight.node_facts import facts_of

RELEASE = "8.6.1"  # the one that the files were tried with
FILE = Path(__file__).parents[1] / "tests" / "data" / "published_graphs.json"


def facts(folder: Path, one: Published) -> dict[str, Any]:
    """Return what is kept of one file: its graph for one exact shape, normalised as a build has it."""
    with tempfile.TemporaryDirectory() as into:
        graph = Path(into) / "graph.onnx"
        file = str(path_of(folder, one))
        made = construct({"file": file, "graph": str(graph), "weights": str(Path(into) / "weights")})
        definition = onnx_graph.parse(graph.read_bytes())
    profile = exact_profile(one, [InputSpec.from_json(item) for item in made["inputs"]])
    table = parser_table("tensorrt", RELEASE)
    if table is None:
        raise KeyError(RELEASE)
    normal = normalised_layout(
        definition, lay_out(definition), (profile,) if profile else (), refit_layout="plain", parser=table.parser
    )
    model = normal.layout.model
    watched = frozenset().union(*(each.attributes for each in parser_tables()))
    counts = Counter(each for _, each in facts_of(model, watched))
    rows = [{"count": count, **each.to_json()} for each, count in counts.items()]
    return {"opset": onnx_graph.opset_of(model), "nodes": sorted(rows, key=json.dumps)}


def main() -> None:
    """Write the facts of all files in the folder, one kind of node a line."""
    folder = Path(sys.argv[1])
    graphs = {one.name: facts(folder, one) for one in listed() if path_of(folder, one).exists()}
    texts = []
    for name, graph in sorted(graphs.items()):
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in graph["nodes"])
        texts.append(f'{json.dumps(name)}: {{"opset": {graph["opset"]}, "nodes": [\n{rows}\n]}}')
    FILE.write_text("{\n" + ",\n".join(texts) + "\n}\n")


if __name__ == "__main__":
    main()
