"""Peak memory of binding a 4 GiB checkpoint, beyond what bare onnxruntime needs for the same engine."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import parameters, write_checkpoint
from benchmarks.service import Service, forget_peak, memory_bytes
from examples.client import Client

LARGE = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "intermediate_size": 8192,
    "max_position_embeddings": 512,
}
MIB = 2**20
BARE = """
import sys
from pathlib import Path
from benchmarks.minilm import Bare
from benchmarks.service import memory_bytes
bare = Bare(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), Path(sys.argv[2]))
bare.refit_by_file(1)
print(memory_bytes("self", "VmHWM"))
"""


def measure(service: Service, scratch: Path) -> dict[str, Any]:
    """Build with a 4 GiB checkpoint, watch the engine host and the worker, and do the same by hand."""
    client = Client(service.url, "large")
    client.call("POST", "/v1/models", {"name": "large"})
    definition = client.post("definitions", {"family": "bert", "config": LARGE})["version"]
    path = scratch / "large.safetensors"
    size = write_checkpoint(path, parameters(client, definition), seed=1)
    weights = client.post("weights", {"files": [client.upload(path)]})["version"]
    processes = {"engine_host": service.find("engine_host"), "worker": service.find("-m workers ")}
    before = {name: memory_bytes(pid, "VmRSS") for name, pid in processes.items()}
    for pid in processes.values():
        forget_peak(pid)
    body = {"definition": definition, "weights": weights, "verify": {"against": "none"}}
    engine = client.finish(client.post("builds", body), lambda _job: None)["engine"]
    peak = {name: memory_bytes(pid, "VmHWM") for name, pid in processes.items()}
    plan = scratch / "large.plan"
    plan.write_bytes(client.http.get(f"/v1/models/large/engines/{engine}/plan").content)
    command = [sys.executable, "-c", BARE, str(plan), str(path)]
    bare = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    path.unlink()
    return {
        "checkpoint_gib": round(size / 2**30, 2),
        "host_peak_mib": peak["engine_host"] // MIB,
        "worker_growth_mib": (peak["worker"] - before["worker"]) // MIB,
        "bare_peak_mib": bare // MIB,
        "beyond_bare_mib": (peak["engine_host"] - bare + peak["worker"] - before["worker"]) // MIB,
    }
