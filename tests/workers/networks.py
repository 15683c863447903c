"""Small networks with weights: a weightless ONNX file, a checkpoint, and what an engine host is asked with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from blake3 import blake3
from onnx import TensorProto, helper, numpy_helper

from app.bindings.report import ParameterBinding
from app.bindings.steps import Transform
from app.definitions.construction import construct
from app.definitions.parameter import InputSpec, Parameter
from app.definitions.profiles import Profile, Range
from app.definitions.tensor_data import ONNX_TYPES
from app.weights.checkpoint import TensorSlot
from app.weights.dtypes import numpy_dtype
from app.weights.formats.safetensors import read_slots
from workers.channel.messages import Build, Built, EngineFile, ParameterSource, Refitted, TensorFile
from workers.engine_host.tensors import write_tensors

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Network:
    """A definition at `path` with the inputs and parameters it declares."""

    path: Path
    inputs: tuple[InputSpec, ...]
    parameters: dict[str, tuple[str, tuple[int, ...]]]

    def weights(self, seed: int) -> dict[str, Array]:
        """Random values for every parameter, small enough for deep networks; variances are positive."""
        random = np.random.default_rng(seed)
        values = {}
        for name, (dtype, shape) in self.parameters.items():
            value = random.standard_normal(shape) * 0.3
            values[name] = (np.abs(value) + 0.5 if "var" in name else value).astype(numpy_dtype(dtype))
        return values

    def build(self, sources: tuple[ParameterSource, ...], plan: Path, **changes: Any) -> Build:  # noqa: ANN401 - fields of Build
        return replace(Build("onnxruntime", str(self.path), sources, self.inputs, str(plan)), **changes)

    def engine(
        self, made: Built | Refitted, sources: tuple[ParameterSource, ...], profiles: tuple[Profile, ...] = ()
    ) -> EngineFile:
        assert made.plan is not None
        assert made.plan_digest is not None
        return EngineFile(
            "onnxruntime",
            plan=made.plan,
            root_plan=made.plan_digest,
            definition=str(self.path),
            parameters=sources,
            inputs=self.inputs,
            profiles=profiles,
        )


def perceptron(path: Path, dtype: str = "F32", width: int = 8, depth: int = 2) -> Network:
    """x -> (MatMul, Add, Relu) * depth."""
    parameters: dict[str, tuple[str, tuple[int, ...]]] = {}
    nodes, last = [], "x"
    for layer in range(depth):
        parameters[f"{layer}.weight"] = (dtype, (width, width))
        parameters[f"{layer}.bias"] = (dtype, (width,))
        nodes.append(helper.make_node("MatMul", [last, f"{layer}.weight"], [f"m{layer}"]))
        nodes.append(helper.make_node("Add", [f"m{layer}", f"{layer}.bias"], [f"a{layer}"]))
        last = "y" if layer == depth - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"a{layer}"], [last]))
    return network_of(path, nodes, parameters, (InputSpec("x", dtype, ("batch", width)),), {"y": dtype})


def convolution(path: Path) -> Network:
    """Conv, BatchNormalization, Relu, Conv, Add, Mul: everything here folds into weights where it may."""
    parameters: dict[str, tuple[str, tuple[int, ...]]] = {
        "conv.weight": ("F32", (4, 3, 3, 3)),
        "bn.scale": ("F32", (4,)),
        "bn.bias": ("F32", (4,)),
        "bn.mean": ("F32", (4,)),
        "bn.var": ("F32", (4,)),
        "out.weight": ("F32", (2, 4, 1, 1)),
        "out.shift": ("F32", (2, 1, 1)),
        "out.gain": ("F32", (2, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "out.weight"], ["o"]),
        helper.make_node("Add", ["o", "out.shift"], ["s"]),
        helper.make_node("Mul", ["s", "out.gain"], ["y"]),
    ]
    image = InputSpec("image", "F32", ("batch", 3, "height", "width"))
    return network_of(path, nodes, parameters, (image,), {"y": "F32"})


def attention(path: Path, width: int = 16, heads: int = 2, vocabulary: int = 32) -> Network:
    """Embedding, self-attention with q, k and v side by side, residual, LayerNormalization, erf-Gelu."""
    square = ("F32", (width, width))
    parameters: dict[str, tuple[str, tuple[int, ...]]] = {"embeddings": ("F32", (vocabulary, width))}
    nodes = [helper.make_node("Gather", ["embeddings", "ids"], ["x"])]
    constants: dict[str, Array] = {
        "split": np.array([0, 0, heads, width // heads]),
        "join": np.array([0, 0, width]),
        "scale": np.array((width // heads) ** -0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "root": np.array(2**0.5, np.float32),
    }
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        parameters[f"{part}.weight"], parameters[f"{part}.bias"] = square, ("F32", (width,))
        nodes += _linear(part, "x", f"{part}0")
        nodes.append(helper.make_node("Reshape", [f"{part}0", "split"], [f"{part}1"]))
        nodes.append(helper.make_node("Transpose", [f"{part}1"], [f"{part}2"], perm=perm))
    parameters |= {"o.weight": square, "o.bias": ("F32", (width,))}
    parameters |= {"norm.weight": ("F32", (width,)), "norm.bias": ("F32", (width,))}
    nodes += [
        helper.make_node("MatMul", ["q2", "k2"], ["s0"]),
        helper.make_node("Mul", ["s0", "scale"], ["s1"]),
        helper.make_node("Softmax", ["s1"], ["s2"], axis=-1),
        helper.make_node("MatMul", ["s2", "v2"], ["c0"]),
        helper.make_node("Transpose", ["c0"], ["c1"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["c1", "join"], ["c2"]),
        *_linear("o", "c2", "o0"),
        helper.make_node("Add", ["o0", "x"], ["o1"]),
        helper.make_node("LayerNormalization", ["o1", "norm.weight", "norm.bias"], ["n"], axis=-1),
        helper.make_node("Div", ["n", "root"], ["g0"]),
        helper.make_node("Erf", ["g0"], ["g1"]),
        helper.make_node("Add", ["g1", "one"], ["g2"]),
        helper.make_node("Mul", ["n", "g2"], ["g3"]),
        helper.make_node("Mul", ["g3", "half"], ["y"]),
    ]
    ids = InputSpec("ids", "I64", ("batch", "sequence"), vocabulary, -vocabulary)
    return network_of(path, nodes, parameters, (ids,), {"y": "F32"}, constants)


def quantised(path: Path, width: int = 64, depth: int = 3) -> Network:
    """(quantise, dequantise, MatMul) * depth, of weights and of what is computed, as quantisers export them."""
    nodes: list[onnx.NodeProto] = []

    def rounded(value: str, scale: str, zero: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}.q", scale, zero], [f"{value}.d"]))
        return f"{value}.d"

    parameters: dict[str, tuple[str, tuple[int, ...]]] = {}
    last = rounded("x", "scale", "zero")
    for layer in range(depth):
        parameters[f"{layer}.weight"] = ("F32", (width, width))
        weight = rounded(f"{layer}.weight", "weight_scale", "weight_zero")
        nodes.append(helper.make_node("MatMul", [last, weight], [f"m{layer}"]))
        last = rounded(f"m{layer}", "scale", "zero")
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    constants: dict[str, Array] = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(128, np.uint8),
        "weight_scale": np.array(0.01, np.float32),
        "weight_zero": np.array(0, np.int8),
    }
    return network_of(path, nodes, parameters, (InputSpec("x", "F32", ("n", width)),), {"y": "F32"}, constants)


def from_config(model: Path, path: Path) -> Network:
    """The definition of a family, made from a Hugging Face config."""
    config = json.loads((model / "config.json").read_text())
    task = {"family": config["model_type"], "config": config, "precision": "fp32"}
    return constructed(task, path)


def from_onnx(file: Path, path: Path) -> Network:
    """The definition of a published ONNX file; its weights lie beside it."""
    return constructed({"file": str(file)}, path)


def constructed(task: dict[str, Any], path: Path) -> Network:
    """A definition as the service makes it; the weights of an ONNX file come to lie beside it, as safetensors."""
    made = construct({**task, "graph": str(path), "weights": str(path.with_suffix(".safetensors"))})
    parameters = [Parameter.from_json(row) for row in made["parameters"]]
    inputs = tuple(InputSpec.from_json(item) for item in made["inputs"])
    return Network(path, inputs, {one.name: (one.dtype, one.shape) for one in parameters})


def image_profile(network: Network) -> dict[str, Range]:
    """A batch of one line of text, 48 pixels high."""
    (image,) = network.inputs
    shape = tuple(dim if isinstance(dim, int) else (1, 3, 64, 192)[axis] for axis, dim in enumerate(image.shape))
    return {image.name: Range(shape, shape, shape)}


def tensor_files(path: Path) -> dict[str, TensorFile]:
    """Say where each tensor of a safetensors file lies."""
    data = path.read_bytes()
    slots = read_slots(lambda offset, length: data[offset : offset + length], len(data))
    return {slot.name: _tensor_file(path, data, slot) for slot in slots}


def _tensor_file(path: Path, data: bytes, slot: TensorSlot) -> TensorFile:
    digest = blake3(data[slot.offset : slot.offset + slot.nbytes]).hexdigest()
    return TensorFile(str(path), slot.offset, slot.nbytes, slot.dtype, slot.shape, digest)


def checkpoint(path: Path, weights: Weights) -> dict[str, TensorFile]:
    """Write a safetensors file and say where each tensor lies."""
    write_tensors(str(path), weights)
    return tensor_files(path)


def bound(
    network: Network, tensors: Mapping[str, TensorFile], transforms: Mapping[str, tuple[Transform, ...]] | None = None
) -> tuple[ParameterSource, ...]:
    """Bind each parameter to the tensor of the same name."""
    return tuple(
        ParameterSource(
            ParameterBinding(name, dtype, shape, (name,), (transforms or {}).get(name, ())), (tensors[name],)
        )
        for name, (dtype, shape) in network.parameters.items()
    )


def _linear(name: str, source: str, target: str) -> list[onnx.NodeProto]:
    """y = x W^T + b, as checkpoints of PyTorch hold their linear layers."""
    return [
        helper.make_node("Transpose", [f"{name}.weight"], [f"{name}.t"], perm=[1, 0]),
        helper.make_node("MatMul", [source, f"{name}.t"], [f"{name}.m"]),
        helper.make_node("Add", [f"{name}.m", f"{name}.bias"], [target]),
    ]


def network_of(
    path: Path,
    nodes: list[onnx.NodeProto],
    parameters: Mapping[str, tuple[str, tuple[int, ...]]],
    inputs: tuple[InputSpec, ...],
    outputs: Mapping[str, str],
    constants: Mapping[str, Array] | None = None,
) -> Network:
    """Write a definition with these nodes, whose parameters have no values."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(one.name, ONNX_TYPES[one.dtype], list(one.shape)) for one in inputs],
        [helper.make_tensor_value_info(name, ONNX_TYPES[dtype], None) for name, dtype in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    _declare(model, parameters, [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()])
    path.write_bytes(model.SerializeToString())
    return Network(path, inputs, dict(parameters))


def _declare(
    model: onnx.ModelProto, parameters: Mapping[str, tuple[str, tuple[int, ...]]], constants: list[TensorProto]
) -> None:
    """Make every parameter an initializer without a value."""
    declared = []
    for name, (dtype, shape) in parameters.items():
        one = TensorProto(name=name, data_type=ONNX_TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
        length = int(np.prod(shape)) * numpy_dtype(dtype).itemsize
        for key, value in (("location", "weights"), ("offset", "0"), ("length", str(length))):
            one.external_data.add(key=key, value=value)
        declared.append(one)
    del model.graph.initializer[:]
    model.graph.initializer.extend([*constants, *declared])
