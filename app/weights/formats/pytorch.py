"""Reading PyTorch's checkpoints: what `torch.save` writes since 1.6, a zip archive of a pickle and of storages.

The archive is described in `torch/serialization.py` (`_save`): `<name>/data.pkl` is the pickle, `<name>/data/<key>` the
elements of a storage, uncompressed, and `<name>/byteorder` is their byte order.
"""

import io
from typing import Final

from app.weights.checkpoint import CheckpointError, Read, TensorSlot
from app.weights.format_parts.torch_pickle import Storage, load
from app.weights.format_parts.torch_tensors import place_tensors
from app.weights.format_parts.zip_archive import ZipArchive, first_name

FIRST_FILES: Final = ("/data.pkl", "/version", "/.format_version", "/byteorder", "/.storage_alignment")


def recognises(start: bytes) -> bool:
    """Whether the file is a zip archive that begins as PyTorch's do."""
    name = first_name(start)
    return name is not None and name.endswith(FIRST_FILES) and name.count("/") == 1


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the tensors of a checkpoint of `size` bytes, in the order of their bytes.

    Only the pickle and the directory are read. Tensors that share elements, as tied ones do, share their bytes here.
    """
    archive = ZipArchive(read, size)
    folder = _folder(archive)
    if f"{folder}byteorder" in archive and archive.content(f"{folder}byteorder") != b"little":
        raise CheckpointError("bad_header", "The elements are big endian. Save the checkpoint on a usual machine.")
    loaded = load(io.BytesIO(archive.content(f"{folder}data.pkl")))
    return place_tensors(loaded.value, lambda storage: _where(archive, folder, storage))


def _folder(archive: ZipArchive) -> str:
    pickles = [name for name in archive.names if name.endswith("/data.pkl") and name.count("/") == 1]
    if not pickles:
        raise CheckpointError("bad_header", "The archive has no data.pkl. Save the checkpoint again.")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive:
        raise CheckpointError(
            "forbidden_pickle",
            "The file is a TorchScript program, not a checkpoint. Load it with torch.jit.load and save its "
            "state_dict() with torch.save or as safetensors.",
        )
    return folder


def _where(archive: ZipArchive, folder: str, storage: Storage) -> tuple[int, int]:
    file = f"{folder}data/{storage.key}"
    if file not in archive:
        raise CheckpointError("truncated_file", f"The archive lacks {file}. Upload the whole file.")
    member = archive.member(file)
    return member.offset, member.nbytes
