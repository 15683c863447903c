"""The work that the API asks of a worker: one type for each kind of job.

A job's row holds its work as JSON. This file alone reads and writes that JSON. A row says the version of its form, so a
worker still does the work that the release before has queued. A row without a version is of version 0.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from app.engines.against import Against, Coverage, IfImpossible
from app.errors import ServiceError
from app.jobs.kinds import Kind
from app.json_digest import json_digest

VERSION = 1
Materialise = Literal["eager", "lazy"]


class Work(BaseModel):
    """The work of one job.

    `kind` is the kind of its job. `interchangeable` names the fields that do not change how long the job takes.
    """

    model_config = ConfigDict(frozen=True)

    kind: ClassVar[Kind]
    interchangeable: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """Return the work that a job's row holds; raises ServiceError "unknown_work" if a newer release wrote it."""
        version = row.get("version", 0)
        if version > VERSION:
            raise unknown_work(f"it is of version {version}, and this worker reads versions up to {VERSION}")
        try:
            return cls.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise unknown_work(f"{'/'.join(map(str, first['loc']))}: {first['msg']}") from error

    def to_json(self) -> dict[str, Any]:
        """Return what the job's row holds."""
        return {"version": VERSION, **self.model_dump(mode="json")}

    def likeness(self, *, model_id: int, queue: str, recipe: str) -> str:
        """Return a digest (32 hex digits) that jobs of like work have in common: they take equally long.

        The queue says the backend and, if it is settled, the platform. `recipe` is the recipe of the engine that the
        job makes or uses: engines that differ in their weights alone take equally long. Every field that is not
        `interchangeable` counts. If like work is taken for unlike, its expected duration is unknown. If unlike work
        were taken for like, it would be wrong.
        """
        alike = self.model_dump(mode="json", exclude=set(self.interchangeable))
        canonical = json.dumps([self.kind, model_id, queue, recipe, alike], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class Verification(BaseModel):
    """How the new engine is verified before it is published.

    `inputs` and `expected` are the digests of safetensors files with inputs and with the outputs to expect of them.
    `tolerance` has those bounds that are not the usual ones. A row holds only what is not as usual.
    """

    model_config = ConfigDict(frozen=True)

    against: Against = "reference"
    inputs: str | None = None
    expected: str | None = None
    tolerance: dict[str, float] = {}
    if_impossible: IfImpossible = "fail"
    coverage: Coverage = "auto"

    @property
    def blobs(self) -> dict[str, str]:
        """The blobs it needs, by the field that names each."""
        named = {"inputs": self.inputs, "expected": self.expected}
        return {name: digest for name, digest in named.items() if digest is not None}

    @model_serializer(mode="wrap")
    def _unusual(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        row: dict[str, Any] = write(self)
        return {name: value for name, value in row.items() if name == "against" or value != fields[name].default}


class MakeEngine(Work):
    """The work of a build or a refit: the fields that both have.

    `binding_id` is the binding by which the weights feed the parameters. It is 0 until the transaction that makes the
    job has recorded the binding. If `reuse` is set, an equal engine that was published meanwhile is the result.
    """

    interchangeable: ClassVar[frozenset[str]] = frozenset({"weights_id", "fingerprint", "reuse"})

    weights_id: int
    binding_id: int = 0
    rules: list[Any]
    fingerprint: str
    verify: Verification
    reuse: bool

    @property
    def writes_plan(self) -> bool:
        """Whether the new engine gets a plan of its own; if so, an equal engine without a plan is no substitute."""
        return True

    def makes(self, *, model_id: int, queue: str) -> str:
        """Return a digest of what the job makes: engines with equal ones are the same, verified in the same way."""
        verify = self.verify.model_dump(mode="json")
        return json_digest([model_id, queue, self.fingerprint, verify, self.writes_plan])


class BuildWork(MakeEngine):
    """Compile a definition with one weight version; if `retry_crashed` is set, also if the compiler crashed at it."""

    kind: ClassVar[Kind] = "build"
    interchangeable: ClassVar[frozenset[str]] = MakeEngine.interchangeable | {"retry_crashed"}

    definition_id: int
    backend: str
    profiles: list[Any]
    options: dict[str, Any]
    retry_crashed: bool = False


class RefitWork(MakeEngine):
    """Make a new engine of the engine `parent_id` by giving it other weights."""

    kind: ClassVar[Kind] = "refit"
    interchangeable: ClassVar[frozenset[str]] = MakeEngine.interchangeable | {"parent_id"}

    parent_id: int
    materialise: Materialise = "eager"

    @property
    def writes_plan(self) -> bool:
        """Whether the plan is written now."""
        return self.materialise == "eager"


class UseEngine(Work):
    """The work of a job that uses one published engine: the field that all such jobs have."""

    interchangeable: ClassVar[frozenset[str]] = frozenset({"engine_id"})

    engine_id: int


class MaterialiseWork(UseEngine):
    """Write the plan of an engine that was refitted lazily."""

    kind: ClassVar[Kind] = "materialise"


class RunWork(UseEngine):
    """Run an engine on the safetensors file with the digest `inputs`."""

    kind: ClassVar[Kind] = "run"

    inputs: str


class VerifyWork(UseEngine):
    """Verify a published engine again."""

    kind: ClassVar[Kind] = "verify"

    verify: Verification


class BenchmarkWork(UseEngine):
    """Measure an engine on fixed inputs; `shapes` has the shape of every input."""

    kind: ClassVar[Kind] = "benchmark"

    iterations: int
    warmup: int
    shapes: dict[str, tuple[int, ...]]
    against: Literal["not_refittable"] | None
    layers: bool


class CompareWork(Work):
    """Measure the engines of a sweep in turns, on `inputs` if these are given, else on made-up ones of `shapes`.

    Each engine has `repeats` turns with `iterations` timed runs in all.
    """

    kind: ClassVar[Kind] = "compare"
    interchangeable: ClassVar[frozenset[str]] = frozenset({"sweep_id"})

    sweep_id: int
    iterations: int
    warmup: int
    repeats: int
    shapes: dict[str, tuple[int, ...]]
    inputs: str | None = None


def unknown_work(reason: str) -> ServiceError:
    """Return the error of a job that this worker cannot read."""
    return ServiceError(
        f"This worker does not know the work of the job: {reason}. If a newer release of the service has queued the "
        "job, upgrade this worker. Then post the job again.",
        code="unknown_work",
    )
