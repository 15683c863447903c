"""Faults put into refits on purpose: is each refused, noticed by the verification, or listed as unseen before?

python -m benchmarks.faults [NUMBER] [SEED]     how many faults over all models, 300 by default

The fault is a parameter of a refitted engine that is not what the engine's weight version says, as if binding, storage
or refit had gone wrong, or it is a damaged file. The engine host's own code runs in this process.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from blake3 import blake3
from rich.console import Console
from rich.table import Table

from app.artifacts.incoming import Incoming
from app.artifacts.local import LocalStore
from app.bindings.report import ParameterBinding
from app.errors import ServiceError
from benchmarks.faulty_models import Model, models
from benchmarks.machine import machine
from benchmarks.wrong_values import VALUES, Random, any_of, flipped, rms
from workers.channel.messages import (
    BackendError,
    Build,
    Built,
    Check,
    EngineFile,
    ParameterSource,
    Refit,
    Sight,
    TensorFile,
    Verified,
    Verify,
)
from workers.engine_host import stored_bytes
from workers.engine_host.engines import Engines
from workers.engine_host.tensors import Array, MappedFiles, write_tensors

NUMBER, SEED = 300, 1
RESULT = Path(__file__).parent / "results" / "faults.json"
PROMISED = 0.01  # of a parameter's root mean square: a smaller change is not promised to be noticed
SHOWN = 20
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and what came of it. `change` is its root mean square over that of the values; None of a file."""

    model: str
    kind: str
    parameters: tuple[str, ...]
    change: float | None
    outcome: str


def main(number: int, seed: int) -> None:
    """Put in the faults, print how they ended and keep the figures, after each model those that there are."""
    started = time.monotonic()
    faults: list[Fault] = []
    sights: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="enginesmith-faults-") as folder:
        chosen = list(models(Path(folder)))
        for index, model in enumerate(chosen):
            share = number // len(chosen) + (index < number % len(chosen))
            with console.status(model.name):
                bench = Bench(model, Path(tempfile.mkdtemp(dir=folder)))
                sights[model.name] = asdict(bench.sight)
                faults += bench.faults(share, np.random.Generator(np.random.PCG64([seed, index])))
            figures = {
                "seed": seed,
                "seconds": round(time.monotonic() - started, 1),
                **_figures(faults),
                "sees": sights,
            }
            RESULT.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
            console.print(f"{model.name}: {len(faults)} faults, {figures['outcomes']}")
    console.print(_table(_figures(faults)))
    console.print(f"written to {RESULT}")


def _figures(faults: Sequence[Fault]) -> dict[str, Any]:
    return {
        "faults": len(faults),
        "outcomes": dict(Counter(one.outcome for one in faults)),
        "by_kind": {kind: dict(Counter(one.outcome for one in faults if one.kind == kind)) for kind in KINDS},
        "by_model": {
            name: dict(Counter(one.outcome for one in faults if one.model == name)) for name in _names(faults)
        },
        "missed": [asdict(one) for one in faults if one.outcome == "missed"],
    }


def _names(faults: Sequence[Fault]) -> list[str]:
    return list(dict.fromkeys(one.model for one in faults))


class Bench:
    """One model, built and refitted; `sight` is what a verification sees of it."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._engines = Engines("cpu", 4 << 30, folder / "scratch", lambda _message: None)
        self._sources = {name: _source(name, file) for name, file in model.files.items()}
        mapped = MappedFiles()
        self._values = {name: mapped.view(file) for name, file in model.files.items()}
        request = Build("onnxruntime", model.definition, self._all({}), model.inputs, str(folder / "plan.onnx"))
        built = self._engines.do(request)
        if not isinstance(built, Built):
            raise TypeError(built)
        self._plan = Path(built.plan)
        self._engine = request.engine(built)
        found = self._verified(self._engine, Check(coverage_s=1e9))
        if not found.ok or found.sees is None:
            raise RuntimeError(f"{model.name} does not verify as it is: {found.detail}")
        self.sight: Sight = found.sees
        self._made_up = found.made_up

    def faults(self, number: int, random: Random) -> Iterator[Fault]:
        """Put in so many faults, of each kind in turn."""
        for index in range(number):
            kind = list(KINDS)[index % len(KINDS)]
            yield KINDS[kind](self, kind, random)

    def wrong_value(self, kind: str, random: Random) -> Fault:
        """Refit an engine to other values than its weight version says, and verify it."""
        values = VALUES[kind](self._values, random)
        names = tuple(values)
        change = max(_change(value, self._values[name]) for name, value in values.items())
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        held = {name: _written(folder, self.model.files[name], value) for name, value in values.items()}
        plan = str(folder / "plan.onnx")
        try:
            self._engines.do(Refit(self._engine, self._all(held), plan))
            # The engine is found by the digests of what it holds; the reference reads what the weight version says.
            said = {name: replace(self.model.files[name], blake3=file.blake3) for name, file in held.items()}
            claimed = replace(self._engine, parameters=self._all(said), plan=plan)
            with patch.object(stored_bytes, "_check", lambda _tensors: None):  # it would refuse what is claimed here
                found = self._verified(claimed, Check(made_up=self._made_up, inner=self.sight.inner))
        except BackendError:
            return Fault(self.model.name, kind, names, change, "refused")
        return Fault(self.model.name, kind, names, change, self._judged(found, names, change))

    def dropped(self, kind: str, random: Random) -> Fault:
        """Refit without one of the parameters."""
        name = any_of(self._values, random)
        sources = tuple(one for one in self._all({}) if one.name != name)
        return self._refusal(kind, (name,), lambda: self._refit(sources))

    def short_file(self, kind: str, random: Random) -> Fault:
        """Refit from a file that ends before the tensor does."""
        name = any_of(self._values, random)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        file = _written(folder, self.model.files[name], self._values[name])
        path = Path(file.path)
        path.write_bytes(path.read_bytes()[: -int(random.integers(1, file.nbytes + 1))])
        return self._refusal(kind, (name,), lambda: self._refit(self._all({name: file})))

    def damaged_plan(self, kind: str, random: Random) -> Fault:
        """Flip a bit of a plan in the store."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        content = self._plan.read_bytes()
        store = LocalStore.open(folder)
        digest, _ = store.put_chunks([content])
        plan = store.unchecked_path(digest)
        plan.chmod(0o644)
        plan.write_bytes(flipped(content, random))
        return self._refusal(kind, (), lambda: store.local_path(digest))

    def damaged_upload(self, kind: str, random: Random) -> Fault:
        """Flip a bit of a checkpoint on its way to the service, which digests what comes."""
        name = any_of(self._values, random)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        content = Path(_written(folder, self.model.files[name], self._values[name]).path).read_bytes()
        incoming = Incoming(folder)
        incoming.write([flipped(content, random)])
        refused = incoming.digest != "sha256:" + hashlib.sha256(content).hexdigest()
        incoming.discard()
        return Fault(self.model.name, kind, (name,), None, "refused" if refused else "missed")

    def _refusal(self, kind: str, names: tuple[str, ...], act: Callable[[], object]) -> Fault:
        try:
            act()
        except (BackendError, ServiceError):
            return Fault(self.model.name, kind, names, None, "refused")
        return Fault(self.model.name, kind, names, None, "missed")

    def _refit(self, sources: tuple[ParameterSource, ...]) -> None:
        self._engines.do(Refit(self._engine, sources, str(self._folder / "refused.onnx")))

    def _judged(self, found: Verified, names: Sequence[str], change: float) -> str:
        if not found.ok:
            return "noticed"
        if set(names) <= set(self.sight.unseen):
            return "listed as unseen"
        if set(names) <= {*self.sight.unseen, *self.sight.in_part}:
            return "listed as seen in part"
        return "smaller than promised" if change < PROMISED else "missed"

    def _verified(self, engine: EngineFile, check: Check) -> Verified:
        found = self._engines.do(Verify(engine, check))
        if not isinstance(found, Verified):
            raise TypeError(found)
        return found

    def _all(self, others: Mapping[str, TensorFile]) -> tuple[ParameterSource, ...]:
        return tuple(
            _source(name, others[name]) if name in others else source for name, source in self._sources.items()
        )


KINDS: Mapping[str, Callable[[Bench, str, Random], Fault]] = {
    **dict.fromkeys(VALUES, Bench.wrong_value),
    "dropped": Bench.dropped,
    "truncated": Bench.short_file,
    "bit flip in a plan": Bench.damaged_plan,
    "bit flip in an upload": Bench.damaged_upload,
}


def _source(name: str, file: TensorFile) -> ParameterSource:
    return ParameterSource(ParameterBinding(name, file.dtype, file.shape, (name,), ()), (file,))


def _written(folder: Path, like: TensorFile, value: Array) -> TensorFile:
    """Write values to a file of their own, with the digest that they have: a refit is refused for any other."""
    path = folder / f"{hashlib.sha256(like.blake3.encode()).hexdigest()[:16]}.safetensors"
    write_tensors(str(path), {"value": value})
    digest = blake3(value.tobytes()).hexdigest()
    return replace(like, path=str(path), offset=path.stat().st_size - value.nbytes, blake3=digest)


def _change(value: Array, original: Array) -> float:
    with np.errstate(invalid="ignore"):
        moved = value.astype(np.float64) - original
    return rms(moved) / (rms(original) or 1.0) if np.isfinite(moved).all() else float("inf")


def _table(figures: Mapping[str, Any]) -> Table:
    outcomes = list(figures["outcomes"])
    table = Table("fault", *outcomes, title=f"{figures['faults']} faults", title_justify="left")
    for kind, counts in figures["by_kind"].items():
        table.add_row(kind, *(str(counts.get(outcome, "")) for outcome in outcomes))
    for one in figures["missed"][:SHOWN]:
        table.add_row(f"missed: {one['model']} {one['kind']} {', '.join(one['parameters'])} {one['change']}")
    return table


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [NUMBER, SEED][len(given) :]))
