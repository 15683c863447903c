"""One model whose refits are done wrongly on purpose: what comes of each fault."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import numpy as np
from blake3 import blake3

from app.artifacts.incoming import Incoming
from app.artifacts.local import LocalStore
from app.bindings.binding import bind
from app.errors import ServiceError
from app.weights.dtypes import numpy_dtype
from benchmarks.faulty_models import Model
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

PROMISED = 0.01  # of a parameter's root mean square: a smaller change is not promised to be noticed
RESIDENT_BYTES = 256 << 20  # of one process; there may be as many as the machine has cores
OTHER_TYPES = ("F64", "I32", "I8")  # what a float32 may not be made of unasked


class NotBoundError(Exception):
    """The weights do not bind, so no job would be queued."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and what came of it. `change` is its root mean square over that of the values; None of a file."""

    model: str
    kind: str
    parameters: tuple[str, ...]
    change: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Known:
    """What a verification of a model sees, and the inputs that it makes up."""

    sight: Sight
    made_up: Mapping[str, Any] | None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read what `asdict` made, by way of JSON."""
        sight: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row["sight"].items()
        }
        return cls(Sight(**sight), row["made_up"])


class Bench:
    """One model, bound, built and refitted. What is `known` of it already is not measured again."""

    def __init__(self, model: Model, folder: Path, known: Known | None = None) -> None:
        self.model = model
        self._folder = folder
        self._engines = Engines("cpu", RESIDENT_BYTES, folder / "scratch", lambda _message: None)
        mapped = MappedFiles()
        self._values = {name: mapped.view(file) for name, file in model.files.items()}
        request = Build(
            "onnxruntime", model.definition, self._bound(model.files), model.inputs, str(folder / "plan.onnx")
        )
        built = self._engines.do(request)
        if not isinstance(built, Built):
            raise TypeError(built)
        self._plan = Path(built.plan)
        self._engine = request.engine(built)
        check = Check(coverage_s=1e9) if known is None else Check(made_up=known.made_up)
        found = self._verified(self._engine, check)
        sight = found.sees if known is None else known.sight
        if not found.ok or sight is None:
            raise RuntimeError(f"{model.name} does not verify as it is: {found.detail}")
        self.known = Known(sight, found.made_up)

    def fault(self, number: int, seed: int) -> Fault:
        """Put in the fault of this number. Its kind and its values depend on number, seed and model alone."""
        kind = list(KINDS)[number % len(KINDS)]
        model = int.from_bytes(blake3(self.model.name.encode()).digest()[:4])
        return KINDS[kind](self, kind, np.random.Generator(np.random.PCG64([seed, model, number])))

    def wrong_value(self, kind: str, random: Random) -> Fault:
        """Refit an engine to other values than its weight version says, and verify it."""
        values = VALUES[kind](self._values, random)
        names = tuple(values)
        change = max(_change(value, self._values[name]) for name, value in values.items())
        with self._scratch() as folder:
            held = {name: _written(folder, self.model.files[name], value) for name, value in values.items()}
            plan = str(folder / "plan.onnx")
            try:
                self._engines.do(Refit(self._engine, self._bound({**self.model.files, **held}), plan))
                # The engine is found by the digests of what it holds; the reference reads what the weight version says.
                said = {name: replace(self.model.files[name], blake3=file.blake3) for name, file in held.items()}
                claimed = replace(self._engine, parameters=self._bound({**self.model.files, **said}), plan=plan)
                with patch.object(stored_bytes, "_check", lambda _tensors: 0):  # it would refuse what is claimed here
                    found = self._verified(claimed, Check(made_up=self.known.made_up, inner=self.known.sight.inner))
            except BackendError:
                return Fault(self.model.name, kind, names, change, "refused")
        return Fault(self.model.name, kind, names, change, self._judged(found, names, change))

    def dropped(self, kind: str, random: Random) -> Fault:
        """Bind a weight version that lacks a tensor, and refit without the parameter if that is let pass."""
        name = any_of(self._values, random)
        files = {other: file for other, file in self.model.files.items() if other != name}
        return self._refusal(kind, (name,), lambda: self._refit(self._bound(files)))

    def lost(self, kind: str, random: Random) -> Fault:
        """Refit without one of the parameters that were bound."""
        name = any_of(self._values, random)
        sources = tuple(one for one in self._bound(self.model.files) if one.binding.parameter != name)
        return self._refusal(kind, (name,), lambda: self._refit(sources))

    def other_shape(self, kind: str, random: Random) -> Fault:
        """Bind a tensor that is stored transposed, and says so by its shape."""
        name = any_of({name: one for name, one in self._values.items() if one.shape != one.shape[::-1]}, random)
        with self._scratch() as folder:
            turned = _written(folder, self.model.files[name], np.ascontiguousarray(self._values[name].T))
            files = {**self.model.files, name: replace(turned, shape=turned.shape[::-1])}
            return self._refusal(kind, (name,), lambda: self._refit(self._bound(files)))

    def other_type(self, kind: str, random: Random) -> Fault:
        """Bind a tensor that was saved in a type that does not widen to the parameter's."""
        floats = {name: one for name, one in self._values.items() if self.model.files[name].dtype == "F32"}
        name = any_of(floats, random)
        dtype = str(random.choice(OTHER_TYPES))
        with self._scratch() as folder:
            value = self._values[name].astype(numpy_dtype(dtype))
            saved = replace(_written(folder, self.model.files[name], value), dtype=dtype, nbytes=value.nbytes)
            return self._refusal(kind, (name,), lambda: self._refit(self._bound({**self.model.files, name: saved})))

    def short_file(self, kind: str, random: Random) -> Fault:
        """Refit from a file that ends before the tensor does."""
        name = any_of(self._values, random)
        with self._scratch() as folder:
            file = _written(folder, self.model.files[name], self._values[name])
            path = Path(file.path)
            path.write_bytes(path.read_bytes()[: -int(random.integers(1, file.nbytes + 1))])
            return self._refusal(kind, (name,), lambda: self._refit(self._bound({**self.model.files, name: file})))

    def damaged_checkpoint(self, kind: str, random: Random) -> Fault:
        """Flip a bit of a tensor in a stored checkpoint, and refit from it."""
        name = any_of(self._values, random)
        with self._scratch() as folder:
            file = _written(folder, self.model.files[name], self._values[name])
            path, content = Path(file.path), Path(file.path).read_bytes()
            path.write_bytes(content[: file.offset] + flipped(content[file.offset :], random))
            return self._refusal(kind, (name,), lambda: self._refit(self._bound({**self.model.files, name: file})))

    def damaged_plan(self, kind: str, random: Random) -> Fault:
        """Flip a bit of a plan in the store."""
        with self._scratch() as folder:
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
        with self._scratch() as folder:
            content = Path(_written(folder, self.model.files[name], self._values[name]).path).read_bytes()
            incoming = Incoming(folder)
            incoming.write([flipped(content, random)])
            refused = incoming.digest != "sha256:" + hashlib.sha256(content).hexdigest()
            incoming.discard()
        return Fault(self.model.name, kind, (name,), None, "refused" if refused else "missed")

    def _refusal(self, kind: str, names: tuple[str, ...], act: Callable[[], object]) -> Fault:
        try:
            act()
        except (BackendError, NotBoundError, ServiceError):
            return Fault(self.model.name, kind, names, None, "refused")
        return Fault(self.model.name, kind, names, None, "missed")

    def _refit(self, sources: tuple[ParameterSource, ...]) -> None:
        self._engines.do(Refit(self._engine, sources, str(self._folder / "refused.onnx")))

    def _judged(self, found: Verified, names: Sequence[str], change: float) -> str:
        if not found.ok:
            return "noticed"
        if set(names) <= set(self.known.sight.unseen):
            return "listed as unseen"
        if set(names) <= {*self.known.sight.unseen, *self.known.sight.in_part}:
            return "listed as seen in part"
        return "smaller than promised" if change < PROMISED else "missed"

    def _verified(self, engine: EngineFile, check: Check) -> Verified:
        found = self._engines.do(Verify(engine, check))
        if not isinstance(found, Verified):
            raise TypeError(found)
        return found

    def _bound(self, files: Mapping[str, TensorFile]) -> tuple[ParameterSource, ...]:
        """Bind the tensors to the definition's parameters, as a request for a refit does; raises NotBoundError."""
        report = bind(
            self.model.parameters, {name: _Tensor(name, one.dtype, one.shape) for name, one in files.items()}, ()
        )
        if not report.ok:
            raise NotBoundError(report.problems[0].detail)
        return tuple(ParameterSource(one, tuple(files[name] for name in one.tensors)) for one in report.bindings)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield a folder for one fault. What is mapped there stays readable for the engine that reads it."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]


KINDS: Mapping[str, Callable[[Bench, str, Random], Fault]] = {
    **dict.fromkeys(VALUES, Bench.wrong_value),
    "dropped": Bench.dropped,
    "lost after it was bound": Bench.lost,
    "stored transposed": Bench.other_shape,
    "stored as another type": Bench.other_type,
    "truncated": Bench.short_file,
    "bit flip in a plan": Bench.damaged_plan,
    "bit flip in a checkpoint": Bench.damaged_checkpoint,
    "bit flip in an upload": Bench.damaged_upload,
}


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
