"""Tensors whose data lie in files beside the graph (https://onnx.ai/onnx/repo-docs/ExternalData.html).

A location in a graph is no path here. It is a name to look up among the files that the client gave.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from onnx import ModelProto, TensorProto

from app.definitions.graph_walk import all_tensors
from app.definitions.parameter import ExternalRange
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import DTYPE_NAMES, byte_count, check_type
from app.errors import FieldError

MAX_NAMED: Final = 5


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data lie outside the graph."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def check_locations(model: ModelProto, files: Mapping[str, Path]) -> None:
    """Raise Rejected unless `files` are exactly the external data files that the model names."""
    named = {_fields(tensor)["location"] for tensor in all_tensors(model) if is_external(tensor)}
    missing, superfluous = sorted(named - files.keys()), sorted(files.keys() - named)
    faults = [
        *(f"{location!r:.200} is missing" for location in missing),
        *(f"{location!r:.200} is not named" for location in superfluous),
    ]
    if missing:
        raise _refused(
            f"The graph has data in other files: {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing. "
            "Upload each with PUT /v1/blobs/<digest> and name it in `external_data`, as in "
            f'{{"onnx": …, "external_data": {{"{missing[0]:.200}": "sha256:…"}}}}',
            faults,
        )
    if superfluous:
        names = f"The graph names {_listed(sorted(named))}" if named else "The graph names no external data"
        raise _refused(f"{names}, and not {_listed(superfluous)}: leave {_listed(superfluous)} out", faults)


def check_range(tensor: TensorProto, what: str, files: Mapping[str, Path]) -> None:
    """Raise Rejected unless a tensor has a known type and the bytes that it declares lie inside its file."""
    check_type(tensor, what)
    fields, declared = _fields(tensor), byte_count(tensor)
    location = fields["location"]
    try:
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", declared))
    except ValueError as error:
        raise _refused(f"{what} has an offset or a length that is no number. Export the model again", []) from error
    size = files[location].stat().st_size
    if length != declared or offset < 0 or offset + length > size:
        raise _refused(
            f"{what} needs {declared} bytes and names {length} at offset {offset} of {location!r:.200}, which has "
            f"{size} bytes. Upload the file that was written with this graph",
            [f"{location!r:.200} does not fit the graph"],
        )


def embedded(tensor: TensorProto, files: Mapping[str, Path]) -> TensorProto:
    """Bring a checked tensor's data into it, if they lie in a file, and return it."""
    if not is_external(tensor):
        return tensor
    fields = _fields(tensor)
    with files[fields["location"]].open("rb") as file:
        file.seek(int(fields.get("offset", "0")))
        tensor.raw_data = file.read(byte_count(tensor))
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    return tensor


def ranges_of(weights: Mapping[str, TensorProto]) -> Iterator[ExternalRange]:
    """Yield where those weights lie that lie in external files."""
    for name, tensor in weights.items():
        if is_external(tensor):
            fields = _fields(tensor)
            dtype = DTYPE_NAMES[tensor.data_type]
            yield ExternalRange(name, dtype, tuple(tensor.dims), fields["location"], int(fields.get("offset", "0")))


def _fields(tensor: TensorProto) -> dict[str, str]:
    return {"location": ""} | {entry.key: entry.value for entry in tensor.external_data}


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(f"'{name:.200}'" for name in names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _refused(detail: str, faults: Sequence[str]) -> Rejected:
    return Rejected("external_data", f"{detail}.", [FieldError("/external_data", fault) for fault in faults[:100]])
