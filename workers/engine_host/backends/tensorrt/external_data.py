"""The graph as TensorRT's parser reads it: a file whose external data are links to the files that hold the weights.

`parse_from_file` takes external data only from the folder of the graph: newer parsers refuse "..", and none takes an
absolute path. Some parsers map the files behind the links and copy nothing. Others read them.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto

from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import Layout, slot_value
from workers.engine_host.tensors import ALIGNMENT, MappedFiles, StoredValue, raw

GRAPH = "graph.onnx"
COMPUTED = "computed"


def write(layout: Layout, values: Mapping[str, StoredValue], folder: Path) -> Path:
    """Write the graph and its links into an empty folder, and return the graph's path.

    `values` are the parameters' values by name. They and the folder must stay until the engine is built, because the
    build may read them. Raises BackendError "missing_weights" or "wrong_weights".
    """
    stored = store_slots(layout, values, folder / COMPUTED)
    path = folder / GRAPH
    path.write_bytes(onnx_graph.serialize(point_slots(layout.model, stored, folder)))
    return path


def store_slots(layout: Layout, values: Mapping[str, StoredValue], file: Path) -> dict[str, StoredValue]:
    """Return where every slot's value lies, by name: the parameter's own bytes, or computed bytes in the new `file`.

    Memory holds one slot's value at a time. Raises BackendError as `slot_value` does.
    """
    mapped = MappedFiles()
    stored = {}
    with file.open("xb") as stream:
        for slot in layout.slots:
            if not slot.is_computed and slot.name in values:
                stored[slot.name] = values[slot.name]
                continue
            array = slot_value(slot, values, mapped)
            offset = -(-stream.tell() // ALIGNMENT) * ALIGNMENT
            stream.seek(offset)
            stream.write(raw(array).data)
            stored[slot.name] = StoredValue(str(file), offset, array.nbytes, slot.dtype, slot.shape)
    return stored


def point_slots(model: ModelProto, values: Mapping[str, StoredValue], folder: Path) -> ModelProto:
    """Return the model with each initializer that has no value pointing at its bytes, through links in `folder`.

    TensorRT tells weights apart by their address. If one address has two names, it knows only the last. So if several
    initializers share a range of bytes, as tied embeddings do, each of them has a link of its own. Raises BackendError
    "missing_weights" or "wrong_weights".
    """
    pointed = ModelProto()
    pointed.CopyFrom(model)
    parameters = onnx_graph.parameters_of(pointed)
    onnx_graph.check_values(parameters, values)
    seen: Counter[tuple[str, int]] = Counter()
    links: dict[tuple[str, int], str] = {}
    for name, parameter in parameters.items():
        value = values[name]
        which = value.path, seen[value.path, value.offset]
        seen[value.path, value.offset] += 1
        if which not in links:
            links[which] = f"{len(links)}.bin"
            (folder / links[which]).symlink_to(Path(value.path).absolute())
        onnx_graph.point(parameter, value, links[which])
    return pointed
