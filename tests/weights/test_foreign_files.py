import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
from safetensors.numpy import save

from app.weights.checkpoint import START_BYTES, CheckpointError
from app.weights.foreign_files import TABLE_MAGIC
from app.weights.recognition import read_slots

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INDEX = json.dumps({"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}).encode()
NESTED = b'{"a": {"' + b"x" * 2 * START_BYTES + b'": 1}}'  # valid, and cut off by what is looked at
MODEL = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []), producer_name="pytorch").SerializeToString()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return buffer.getvalue()


def array_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    return buffer.getvalue()


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


def refusal(raw: bytes) -> str:
    with pytest.raises(CheckpointError) as error:
        read_slots(lambda offset, length: raw[offset : offset + length], len(raw))
    assert error.value.code == "unknown_format"
    return error.value.detail


@pytest.mark.parametrize(
    ("raw", "what", "remedy"),
    [
        (archive("net/data/0", "net/data.pkl", "net/constants.pkl"), "TorchScript program", "torch.jit.load"),
        (archive("net/archive_format", "net/data/weights/0"), "a program of torch.export", "torch.export.load"),
        (archive("readme.txt", "net/data.pkl"), "PyTorch checkpoint that was packed again", "torch.save"),
        (pickle.dumps({"w": 1}, protocol=2), "a pickle, of no PyTorch checkpoint", "numpy.savez"),
        (pickle.dumps({"w": 1}, protocol=5), "a pickle, of no PyTorch checkpoint", "can run any code"),
        (array_file(), "numpy array", "numpy.savez"),
        (archive("metadata.json", "config.json", "model.weights.h5"), "Keras", "save_file"),
        (archive("readme.txt"), "zip archive", "Unpack it"),
        (
            b'<?xml version="1.0"?>\n<net name="model" version="11">\n<layers>',
            "an OpenVINO model (.xml)",
            "ONNX export",
        ),
        (b"tjgg\x03\x00\x00\x00" + bytes(40), "llama.cpp from before GGUF", "to GGUF with a current llama.cpp"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "save_file"),
        (POINTER, "git-lfs", "git lfs pull"),
        (INDEX, "index of a sharded checkpoint", "all the shards"),
        (b'{"meta":{"total_size":1},"weight_map":{}}', "index of a sharded checkpoint", "all the shards"),
        (b'{"error": "Repository not found"}', "reports an error", "download the checkpoint again"),
        (b'{"model_type": "bert"}', "JSON document, such as a config", "checkpoint files"),
        (NESTED, "JSON document", "checkpoint files"),
        (b"<!DOCTYPE html>\n<html><title>404</title>", "HTML page", "Download the checkpoint again"),
        (b'\n  <html lang="en">', "HTML page", "Download the checkpoint again"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", "Download the checkpoint again"),
        (MODEL, "ONNX model", "definitions"),
        (gzip.compress(save({"w": np.zeros(3)})), "compressed file", "Decompress"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(40)), "compressed file", "Decompress"),
        (tar_file(), "tar archive", "Unpack it"),
        (b"\xff" * 40 + TABLE_MAGIC, "TensorFlow checkpoint's index", "tf.train.load_checkpoint"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite", "save_file"),
        (b"ftrt\x00\x00\x00\x01" + bytes(40), "TensorRT engine", "never taken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_what_is_no_checkpoint_is_called_by_its_name_with_what_to_upload(raw: bytes, what: str, remedy: str) -> None:
    detail = refusal(raw)
    assert what in detail
    assert remedy in detail


def test_text_that_looks_like_nothing_is_told_by_its_first_bytes() -> None:
    assert "starts with b'\\xff\\xff" in refusal(b"\xff" * 40)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Entry not found, dear reader", "a text"),
        ("a note".encode("utf-16"), "a text"),
        (("# Model\n" + "é" * START_BYTES).encode(), "a text"),
        (b'{"model_type": "bert", "message": 1}', "such as a config"),
        (b'{"[PAD]": 0, "error": 1}', "such as a config"),
        (b'{"error": "not found"}', "reports an error"),
        (b'{"peft_type": "LORA", "r": 8}', "merge_and_unload"),
    ],
)
def test_texts_are_told_from_configs_and_errors(data: bytes, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_slots(lambda offset, size: data[offset : offset + size], len(data))
    assert words in str(caught.value)
