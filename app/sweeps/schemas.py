"""Sweeps as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, model_validator

from app.artifacts.fields import Digest
from app.engines.schemas import BuildRequest, Options
from app.http.fields import at_most
from app.http.request_body import RequestBody

MAX_VARIANTS = 32
MAX_VARIED = 16
MAX_LABEL = 200  # characters
Values = Annotated[list[Any], Field(min_length=1, max_length=MAX_VARIANTS)]
VARIANT: dict[str, Any] = {
    "position": 0,
    "label": "optimization_level=3, precision=fp16",
    "options": {"precision": "fp16"},
    "profiles": [],
    "job": "019c2a3e-7c1e-7d3a-9a44-0f6c5b0f8f11",
    "state": "succeeded",
    "engine": 7,
    "error": 4.1e-4,
    "latency": {"median": 0.00113, "p95": 0.00119, "mean": 0.00114, "spread": 2e-5},
    "rank": 1,
    "left_out": None,
}
SWEEP: dict[str, Any] = {
    "number": 1,
    "definition": 1,
    "weights": 1,
    "backend": "tensorrt",
    "state": "succeeded",
    "job": "019c2a3e-7c1e-7d3a-9a44-0f6c5b0f8f12",
    "tolerance": 0.001,
    "measurement": {"iterations": 100, "warmup": 10, "repeats": 10, "shapes": {"input_ids": [8, 128]}, "inputs": None},
    "variants": [VARIANT],
    "best": {"position": 0, "label": VARIANT["label"], "engine": 7},
    "report": "sha256:" + "9a" * 32,
    "created_at": "2026-11-22T10:00:00Z",
}


class VariantRequest(RequestBody):
    """One engine of a sweep: options that are set besides those of the request, and profiles in place of them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"options": {"precision": "fp16"}}]})

    label: Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL)] | None = Field(
        None, description="Left out: what sets it apart."
    )
    options: Options = Field({}, description="Set besides those of the request, and in place of those of its names.")
    profiles: list[Any] | None = Field(None, description="Left out: those of the request.")


class SweepRequest(BuildRequest):
    """A build, and what is to be varied: either every combination of some values, or variants one by one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "definition": 1,
                    "weights": 1,
                    "vary": {"optimization_level": [3, 4, 5], "precision": ["definition", "fp16"]},
                    "tolerance": 0.001,
                    "shapes": {"input_ids": [8, 128]},
                },
                {"definition": 1, "variants": [{"options": {"refit": "none"}}, {"label": "as it comes"}]},
            ]
        },
    )

    vary: Annotated[dict[str, Values], at_most(MAX_VARIED)] | None = Field(
        None,
        json_schema_extra={"maxProperties": MAX_VARIED},
        description="Values by option, of which every combination is built. `profiles` may be varied as well: its "
        "values are lists of profiles.",
    )
    variants: Annotated[list[VariantRequest], Field(min_length=1, max_length=MAX_VARIANTS)] | None = None
    tolerance: float | None = Field(
        None,
        ge=0,
        description="The largest error of the engine named `best`: |a - b| / |b| of its worst output, as its "
        "verification found it. Left out: any engine may be.",
    )
    shapes: Annotated[dict[str, Annotated[list[int], FailFast()]], at_most(1024)] = Field(
        {},
        max_length=1024,
        description="Shapes by input to measure on; inputs left out follow from those given, or have the `opt` of a "
        "profile.",
    )
    inputs: Digest | None = Field(
        None, description="A safetensors blob with one tensor per input to measure on, in place of made-up ones."
    )
    iterations: int = Field(100, ge=1, le=10_000, description="Runs of each engine that are timed, one by one.")
    warmup: int = Field(10, ge=0, le=1000, description="Runs of each engine before each of its turns that are not.")
    repeats: int = Field(10, ge=1, le=100, description="Turns of each engine, among which its runs are divided.")

    @model_validator(mode="after")
    def _check_what_varies(self) -> Self:
        if (self.vary is None) == (self.variants is None):
            raise ValueError("give either `vary` or `variants`")
        if self.vary is not None and not self.vary:
            raise ValueError("`vary` names nothing to vary")
        labels = [one.label for one in self.variants or () if one.label is not None]
        if len({*labels}) < len(labels):
            raise ValueError("two variants have the same label: give each one of its own, or none")
        if self.shapes and self.inputs is not None:
            raise ValueError("`inputs` have shapes of their own: leave out `shapes`")
        return self


class LatencyAnswer(BaseModel):
    """Seconds of a run; `spread` lies between the lowest and the highest median of a turn."""

    median: float
    p95: float
    mean: float
    spread: float


class VariantAnswer(BaseModel):
    """One engine of a sweep. `rank` counts from 1, the fastest."""

    model_config = ConfigDict(json_schema_extra={"examples": [VARIANT]})

    position: int
    label: str
    options: dict[str, Any] = Field(description="Those that differ from their defaults.")
    profiles: list[Any]
    job: str = Field(description="The job that builds it, or that found an equal engine.")
    state: str = Field(description="The state of that job.")
    engine: int | None
    error: float | None = Field(description="|a - b| / |b| of its worst output; null if it was not verified.")
    latency: LatencyAnswer | None
    rank: int | None
    left_out: str | None = Field(description="Why it was not measured.")


class BestAnswer(BaseModel):
    """The fastest engine within the tolerance."""

    position: int
    label: str
    engine: int


class SweepAnswer(BaseModel):
    """Engines of one definition and weight version that differ in options or profiles, measured in turns."""

    model_config = ConfigDict(json_schema_extra={"examples": [SWEEP]})

    number: int
    definition: int
    weights: int
    backend: str
    state: str = Field(description="The state of the job that measures. It is queued while the engines are built.")
    job: str = Field(description="That job.")
    tolerance: float | None
    measurement: dict[str, Any]
    variants: list[VariantAnswer]
    best: BestAnswer | None = Field(description="Null until all are measured, or if no engine is within the tolerance.")
    report: str | None = Field(description="The digest of a JSON blob with every sample.")
    created_at: datetime
