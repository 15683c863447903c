"""What a file is that is no checkpoint, by its first or last bytes, and what to upload instead.

The magic numbers are those of the formats' own documents: zip (PKWARE APPNOTE, 4.3.7), npy (NEP 1), HDF5 (File Format
Specification, III.A), git-lfs (`docs/spec.md`), TensorFlow's `table.cc`, POSIX tar.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.weights.checkpoint import Read

TAIL_BYTES: Final = 8
NAME_OFFSET: Final = 30  # of the first file's name in a zip archive
ZIP_MAGIC: Final = b"PK\x03\x04"
ENTRY_MAGIC: Final = b"PK\x01\x02"
ENTRY_NAME: Final = 42  # the offset of the name in a directory's entry, behind the magic
DIRECTORY_BYTES: Final = 1024 * 1024
TAR_MAGIC_OFFSET: Final = 257
MIN_TEXT: Final = 8  # characters
MAX_CHARACTER_BYTES: Final = 4
TABLE_MAGIC: Final = bytes.fromhex("57fb808b247547db")  # the last bytes of a TensorFlow checkpoint's index

_TORCH = "Load it with torch.load(..., weights_only=True) and write its state dict with torch.save or as safetensors."
_SCRIPT = "Load it with torch.jit.load and write its state_dict() with torch.save or as safetensors."
_EXPORTED = "Load it with torch.export.load and write its state_dict with torch.save or as safetensors."
_PICKLE = (
    "A pickle can run any code. If you trust it, load it and write its arrays by name with numpy.savez or "
    "safetensors.numpy.save_file, or its tensors with torch.save."
)
_NUMPY = "It has one array and no name. Write it with numpy.savez(..., **{name: array}), or as safetensors."
_KERAS = "Load the model and write its variables by name with safetensors.numpy.save_file."
_TENSORFLOW = "Read it with tf.train.load_checkpoint and write its variables with safetensors.numpy.save_file."
_UNPACK = "Unpack it and upload the checkpoint files in it."


@dataclass(frozen=True, slots=True)
class Start:
    """The first bytes of a file, its last eight, and the names of the last `entries` of a zip archive's directory."""

    head: bytes
    tail: bytes
    entries: tuple[bytes, ...] = ()


def explain(read: Read, size: int, start: bytes) -> tuple[str, str] | None:
    """Say what a file of `size` bytes that starts with `start` is, and what to do; None if that cannot be told."""
    seen = Start(start, read(max(0, size - TAIL_BYTES), min(size, TAIL_BYTES)), _entries(read, size, start))
    for what, remedy, matches in _KINDS:
        if matches(seen):
            return what, remedy
    return None


def _entries(read: Read, size: int, start: bytes) -> tuple[bytes, ...]:
    """Return the names at the end of a zip archive's directory, which is the end of the file."""
    if not start.startswith(ZIP_MAGIC):
        return ()
    length = min(size, DIRECTORY_BYTES)
    pieces = read(size - length, length).split(ENTRY_MAGIC)[1:]  # APPNOTE 4.3.12
    names = (piece[ENTRY_NAME : ENTRY_NAME + int.from_bytes(piece[24:26], "little")] for piece in pieces)
    return tuple(names)


def _begins(*magic: bytes) -> Callable[[Start], bool]:
    return lambda seen: seen.head.startswith(magic)


def _is_zip_of(*names: bytes) -> Callable[[Start], bool]:
    def matches(seen: Start) -> bool:
        length = int.from_bytes(seen.head[26:28], "little")
        first = seen.head[NAME_OFFSET : NAME_OFFSET + length]
        return seen.head.startswith(ZIP_MAGIC) and first.endswith(names)

    return matches


def _is_zip_with(*names: bytes) -> Callable[[Start], bool]:
    return lambda seen: any(entry.endswith(names) for entry in seen.entries)


def _is_openvino(seen: Start) -> bool:
    """An XML document whose outermost element is a net."""
    text = seen.head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith((b"<?xml", b"<net ")) and re.search(rb"<net\s[^>]*version=", text) is not None


def _is_onnx(seen: Start) -> bool:
    """A ModelProto starts with its ir_version, a small number, and the tag of one of its next fields."""
    return len(seen.head) > 2 and seen.head[0] == 0x08 and 1 <= seen.head[1] <= 32 and seen.head[2] in _MODEL_TAGS


_MODEL_TAGS: Final = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})


def _is_text(*words: bytes) -> Callable[[Start], bool]:
    def matches(seen: Start) -> bool:
        text = seen.head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        return text.startswith(words)

    return matches


def _is_json_with(*keys: bytes) -> Callable[[Start], bool]:
    def matches(seen: Start) -> bool:
        return _is_json(seen) and any(b'"' + key + b'"' in seen.head for key in keys)

    return matches


def _is_json_error(seen: Start) -> bool:
    """Whether it starts as servers answer: a config may have such a key further down, a vocabulary such a word."""
    text = seen.head.lstrip(b"\xef\xbb\xbf \t\r\n{")
    return _is_json(seen) and text.startswith((b'"error"', b'"errors"', b'"message"', b'"detail"', b'"statusCode"'))


def _is_plain_text(seen: Start) -> bool:
    if seen.head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return True
    text = seen.head.decode("utf-8", errors="ignore")  # it may be cut off inside a character
    is_whole = len(seen.head) - len(text.encode()) < MAX_CHARACTER_BYTES
    return is_whole and len(text) > MIN_TEXT and all(one.isprintable() or one in "\t\r\n\ufeff" for one in text)


def _is_json(seen: Start) -> bool:
    text = seen.head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text.startswith((b"{", b"[")):
        return False
    try:
        json.loads(text)
    except UnicodeDecodeError:
        return False
    except ValueError:
        return text[1:].lstrip()[:1] in b'"{[]}'  # cut off behind the bytes that are looked at
    return True


_KINDS: Final[tuple[tuple[str, str, Callable[[Start], bool]], ...]] = (
    (
        "a git-lfs pointer, which stands for the real file",
        "Fetch the file itself with git lfs pull (or download it from the hub) and upload that.",
        _begins(b"version https://git-lfs.github.com/"),
    ),
    (
        "the index of a sharded checkpoint (index.json), which holds no tensors",
        "Leave it out and give all the shards that its weight_map lists in `files`.",
        _is_json_with(b"weight_map"),
    ),
    (
        "a JSON document that reports an error, saved in place of the download",
        "Check the address and the credentials, download the checkpoint again, and upload that.",
        _is_json_error,
    ),
    (
        "the config of an adapter (adapter_config.json), which holds no tensors",
        "Merge the adapter into its base model (PEFT: merge_and_unload) and upload the weights of that.",
        _is_json_with(b"peft_type"),
    ),
    ("a JSON document, such as a config", "Upload the checkpoint files that belong to it.", _is_json),
    (
        "an HTML page, most likely an error or a login page saved in place of the download",
        "Download the checkpoint again with what the site asks for, and upload that.",
        _is_text(b"<!doctype html", b"<html", b"<head", b"<body"),
    ),
    (
        "an OpenVINO model (.xml), whose weights lie in its .bin without names of the framework's",
        "Upload the checkpoint of the model that it was converted from, or register an ONNX export of it.",
        _is_openvino,
    ),
    (
        "an XML document, most likely the error of an object store saved in place of the download",
        "Download the checkpoint again with what the store asks for, and upload that.",
        _is_text(b"<?xml", b"<error"),
    ),
    ("a TorchScript program (.pt)", _SCRIPT, _is_zip_with(b"/constants.pkl")),
    (
        "a program of torch.export (.pt2)",
        _EXPORTED,
        _is_zip_with(b"/archive_format", b"serialized_exported_program.json"),
    ),
    ("a PyTorch checkpoint that was packed again, with other files in it", _TORCH, _is_zip_with(b"/data.pkl")),
    ("a Keras model (.keras, a zip archive)", _KERAS, _is_zip_of(b"metadata.json", b"config.json", b".weights.h5")),
    ("a zip archive", _UNPACK, _begins(ZIP_MAGIC, b"PK\x05\x06")),
    ("a numpy array (.npy)", _NUMPY, _begins(b"\x93NUMPY")),
    (
        "a file of llama.cpp from before GGUF",
        "Convert the model's checkpoint to GGUF with a current llama.cpp, or upload that checkpoint itself.",
        _begins(b"lmgg", b"tjgg", b"fmgg"),
    ),
    ("an HDF5 file, as Keras writes them (.h5)", _KERAS, _begins(b"\x89HDF\r\n\x1a\n")),
    ("a pickle, of no PyTorch checkpoint", _PICKLE, _begins(*(bytes((0x80, protocol)) for protocol in range(2, 6)))),
    ("a TensorFlow Lite model", _KERAS, lambda seen: seen.head[4:8] == b"TFL3"),
    (
        "a TensorRT engine",
        "Engines are made here, never taken: upload the weights it was built from.",
        _begins(b"ftrt", b"ptrt"),
    ),
    ("a TensorFlow checkpoint's index", _TENSORFLOW, lambda seen: seen.tail == TABLE_MAGIC),
    (
        "an ONNX model",
        "Register it with POST /v1/models/<model>/definitions as `onnx`; the weights in it become a weight version.",
        _is_onnx,
    ),
    (
        "a compressed file",
        "Decompress it and upload what is in it.",
        _begins(b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00", b"\x04\x22\x4d\x18"),
    ),
    ("a 7-Zip or RAR archive", _UNPACK, _begins(b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")),
    ("a tar archive", _UNPACK, lambda seen: seen.head[TAR_MAGIC_OFFSET : TAR_MAGIC_OFFSET + 5] == b"ustar"),
    (
        "a text, such as a README or what a server answered in place of the download",
        "Download the checkpoint itself again, and upload that.",
        _is_plain_text,
    ),
)
