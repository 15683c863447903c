"""Synthetic checkpoints for a definition's parameters, written a piece at a time whatever their size."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from examples.client import Client

PIECE = 4 * 1024 * 1024  # float32 values


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


def write_checkpoint(path: Path, rows: list[dict[str, Any]], *, seed: int, scale: float = 0.02) -> int:
    """Write float32 tensors of the given names and shapes as safetensors and return the file's bytes.

    The format: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {}
    offset = 0
    for row in rows:
        nbytes = 4 * int(np.prod(row["shape"], dtype=np.int64))
        header[row["name"]] = {"dtype": "F32", "shape": row["shape"], "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(seed).standard_normal(PIECE).astype(np.float32) * np.float32(scale)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = offset // 4
        while left:
            count = min(left, PIECE)
            file.write(values[:count].data)
            left -= count
    return path.stat().st_size
