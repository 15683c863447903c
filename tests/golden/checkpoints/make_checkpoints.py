"""Makes the golden checkpoints beside it, as PyTorch and llama.cpp's gguf write them.

Run it from the root of the repository where both are installed: python -m tests.golden.checkpoints.make_checkpoints
"""

from collections import OrderedDict
from datetime import datetime
from typing import Any

import gguf  # type: ignore[import-not-found]  # this script alone needs it
import numpy as np
import torch  # type: ignore[import-not-found]  # this script alone needs it

from tests.golden.checkpoints.values import FOLDER, PERCEPTRON, SMALL

TORCH_ONLY = {"bf16": torch.bfloat16, "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2}


def main() -> None:
    """Write every file."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    state = OrderedDict((name, torch.from_numpy(value.copy())) for name, value in PERCEPTRON.items())
    net.load_state_dict(state)
    state = net.state_dict()  # with its _metadata
    small = {name: torch.from_numpy(value.copy()) for name, value in SMALL.items()}
    small |= {name: torch.tensor([1.0, -2.0]).to(dtype) for name, dtype in TORCH_ONLY.items()}
    table = torch.arange(6.0).reshape(2, 3)
    for kind, is_zip in (("", True), ("_legacy", False)):
        save(f"perceptron{kind}.pt", state, is_zip)
        save(f"small{kind}.pt", small, is_zip)
        save(f"training{kind}.pt", training(net), is_zip)
        save(f"tied{kind}.pt", {"table": table, "head": table, "flat": table.view(6)}, is_zip)
    save("ema.pt", {"model": state, "ema": {name: value + 1 for name, value in state.items()}})
    save("protocol4.pt", state, pickle_protocol=4)
    save("parameter.pt", {"w": torch.nn.Parameter(table), "alone": torch.tensor([1 + 2j])})
    save("alone.pt", table)
    refused(net, table)
    write_gguf()


def refused(net: Any, table: Any) -> None:  # noqa: ANN401 - torch's
    """Write what is no set of dense tensors that lie apart."""
    save("refused_view.pt", {"w": table.t()})
    save("refused_expanded.pt", {"w": torch.zeros(1).expand(4)})
    save("refused_overlap.pt", {"whole": table, "row": table[1:]})
    save("refused_conjugated.pt", {"w": torch.tensor([1 + 2j]).conj()})
    save("refused_quantized.pt", {"w": torch.quantize_per_tensor(table, 0.1, 0, torch.qint8)})
    save("refused_sparse.pt", {"w": torch.eye(3).to_sparse()})
    save("refused_meta.pt", {"w": torch.zeros(3, device="meta")})
    save("refused_module.pt", net)


def training(net: Any) -> dict[str, Any]:  # noqa: ANN401 - torch's
    """Return what a training loop saves."""
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 8)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()  # without a gradient nothing moves, but the moments are there
    return {
        "epoch": 3,
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loss": np.float64(0.25),
        "when": datetime(2026, 1, 2),  # noqa: DTZ001 - as training loops write it
        "classes": {"cat", "dog"},
        "device": torch.device("cpu"),
    }


def save(name: str, value: object, is_zip: bool = True, **settings: Any) -> None:  # noqa: ANN401, FBT001, FBT002 - torch.save's
    """Write one file with torch.save."""
    torch.save(value, FOLDER / name, _use_new_zipfile_serialization=is_zip, **settings)


def write_gguf() -> None:
    """Write two GGUF files: the perceptron, and one with pairs of several types and a quantised tensor."""
    writer = gguf.GGUFWriter(FOLDER / "perceptron.gguf", "perceptron")
    finish(writer, dict(PERCEPTRON))
    writer = gguf.GGUFWriter(FOLDER / "small.gguf", "llama")
    writer.add_string("general.name", "a small one")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.scores", [1.0, 2.0])
    writer.add_bool("general.flag", val=True)
    writer.add_custom_alignment(64)
    quantised = gguf.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("quantised", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    finish(writer, {name: SMALL[name] for name in ("f32", "f16", "i64", "i8")})


def finish(writer: Any, tensors: dict[str, Any]) -> None:  # noqa: ANN401 - gguf's
    """Add the tensors and write the file."""
    for name, value in tensors.items():
        writer.add_tensor(name, value.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
