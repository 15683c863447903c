"""Synthetic checkpoints of any size, written piece by piece."""

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from examples.client import Client

PIECE = 4 * 1024 * 1024  # values
DTYPES = {"F32": np.float32, "F16": np.float16}
GAIN = re.compile(r"(.*\.)?(ln_\w+|\w*[Nn]orm)\.weight")  # of a normalisation: its values lie around 1


def parameters(client: Client, definition: int) -> list[dict[str, Any]]:
    """Return every parameter of a definition: name, dtype, shape."""
    path = f"/v1/models/{client.model}/definitions/{definition}/parameters?limit=200"
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = client.call("GET", path + cursor)
        rows += page["data"]
        if not page["has_more"]:
            return rows
        cursor = f"&after={page['next_cursor']}"


def gpt2_config(layers: int = 12, width: int = 768, *, vocab: int = 50257, positions: int = 1024) -> dict[str, Any]:
    """Return the config.json of a GPT-2 whose heads are 64 wide; the defaults are `gpt2`, 124 million parameters."""
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_embd": width,
        "n_head": max(1, width // 64),
        "n_positions": positions,
        "vocab_size": vocab,
    }


def gpt2_tensors(config: dict[str, Any], prefix: str = "transformer.") -> list[dict[str, Any]]:
    """Return name and shape of each tensor that a checkpoint of `GPT2LMHeadModel` has for a `gpt2_config`."""
    width = config["n_embd"]
    shapes: dict[str, list[int]] = {
        "wte.weight": [config["vocab_size"], width],
        "wpe.weight": [config["n_positions"], width],
    }
    for layer in range(config["n_layer"]):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in _gpt2_layer(width)}
    shapes |= {"ln_f.weight": [width], "ln_f.bias": [width]}
    return [{"name": prefix + name, "shape": shape} for name, shape in shapes.items()]


def _gpt2_layer(width: int) -> Iterator[tuple[str, list[int]]]:
    for name in ("ln_1", "ln_2"):
        yield from ((f"{name}.weight", [width]), (f"{name}.bias", [width]))
    dense = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for name, (inner, outer) in dense.items():
        yield from ((f"{name}.weight", [inner * width, outer * width]), (f"{name}.bias", [outer * width]))


def write_checkpoint(
    path: Path, rows: list[dict[str, Any]], *, seed: int, scale: float = 0.02, dtype: Literal["F32", "F16"] = "F32"
) -> int:
    """Write tensors of the given names and shapes as safetensors and return the file's bytes.

    The format: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {}
    offset = 0
    for row in rows:
        nbytes = np.dtype(DTYPES[dtype]).itemsize * prod(row["shape"])
        header[row["name"]] = {"dtype": dtype, "shape": row["shape"], "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    values = (random.standard_normal(PIECE, np.float32) * np.float32(scale)).astype(DTYPES[dtype])
    gains = values + values.dtype.type(1)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for row in rows:
            around = gains if GAIN.fullmatch(row["name"]) else values
            _write_tensor(file, around, prod(row["shape"]), start=int(random.integers(PIECE)))
    return path.stat().st_size


def _write_tensor(file: BinaryIO, values: NDArray[Any], left: int, *, start: int) -> None:
    """Write `left` values from `start` on; the first value follows the last."""
    while left:
        count = min(left, len(values) - start)
        file.write(values[start : start + count].data)
        left -= count
        start = 0
