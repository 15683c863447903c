"""An uploaded ONNX file and its external data files: where they lie, and what becomes of the weights in them."""

from collections.abc import Mapping
from pathlib import Path

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.children.house import House
from app.database import Database
from app.errors import FieldError, Invalid, json_pointer
from app.settings import Settings
from app.weights.checkpoint import CheckpointError
from app.weights.indexing import Source, combine, index_file, index_ranges
from app.weights.unsaved import UnsavedWeights


def blobs_by_pointer(onnx: str, external_data: Mapping[str, str]) -> dict[str, str]:
    """Return the digest of each file of a request, by its pointer."""
    external = {json_pointer("external_data", location): digest for location, digest in external_data.items()}
    return {"/onnx": onnx, **external}


def local_file(store: ArtifactStore, settings: Settings, digest: str) -> Path:
    """Return where an ONNX file lies on this machine; Invalid if it is larger than the service parses."""
    size = store.size(digest) or 0
    if size > settings.max_onnx_bytes:
        raise Invalid(
            f"The ONNX file has {size} bytes; at most {settings.max_onnx_bytes} are parsed. Upload the graph with "
            "small or no weights and the weights as a checkpoint, or have ENGINESMITH_MAX_ONNX_BYTES raised.",
            code="onnx_too_large",
            errors=[FieldError("/onnx", f"larger than {settings.max_onnx_bytes} bytes")],
        )
    return store.local_path(digest)


def local_files(store: ArtifactStore, external_data: Mapping[str, str]) -> dict[str, Path]:
    """Return where external data files lie on this machine, by location."""
    return {location: store.local_path(digest) for location, digest in external_data.items()}


def store_weights(
    database: Database,
    store: ArtifactStore,
    house: House,
    inside: Path | None,
    external: Path | None,
    files: Mapping[str, str],
) -> UnsavedWeights | None:
    """Return the weights that an ONNX file brought; None if it brought none.

    `inside` is a file of those that lay in it. `external` has the rows of ranges of `files` as they were uploaded,
    whose digests come by location. Raises Invalid if a tensor is not acceptable.
    """
    if inside is None and external is None:
        return None
    indexes: list[Source] = []
    try:
        if inside is not None:
            digest, size = store.put_file(inside)
            artifacts.record_upload(database, store, digest, size)
            indexes.append(index_file(database, store, house, digest))
        if external is not None:
            indexes.append(index_ranges(house, external, local_files(store, files), files))
    except CheckpointError as error:
        raise Invalid(f"The weights of the ONNX file: {error.detail}", code=error.code) from error
    return combine(house, indexes)
