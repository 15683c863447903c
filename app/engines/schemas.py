"""Engines and the requests for them, as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints

from app.artifacts.fields import Digest
from app.engines.against import Against, Coverage, IfImpossible
from app.engines.work import Materialise
from app.fleet.fingerprint import FINGERPRINT, FingerprintAnswer
from app.http.fields import Number, at_most
from app.http.request_body import RequestBody

Backend = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]
Options = Annotated[dict[str, Any], Field(max_length=64)]
DeviceName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
VERIFY = (
    "Left out: reference. If the workers that make the engine compile for other devices and cannot run it, none "
    "is the default, and anything else is refused (`cannot_verify`): verify such an engine where it runs."
)

WEIGHTS = (
    "Left out: those embedded in the definition's ONNX file. A definition without parameters needs none. One of a "
    "family has none embedded (`weights_required`)."
)
NON_FINITE = "true: take weights that feed NaN or infinities to parameters, which are refused otherwise."
PREFLIGHT = (
    "refuse: refuse a build that is known to be impossible on every worker that could make it (`preflight_refused`). "
    "ignore: queue it all the same, because what is known may be wrong."
)
Preflight = Literal["refuse", "ignore"]
PROFILE: dict[str, Any] = {"input_ids": {"min": [1, 1], "opt": [4, 64], "max": [32, 256]}}
RULE: dict[str, Any] = {"parameter": r"encoder\.(.*)", "tensors": [r"bert.encoder.\1"]}
INPUTS = "sha256:3f1c5a7e" + "0b" * 28
ENGINE: dict[str, Any] = {
    "number": 2,
    "method": "refit",
    "parent": 1,
    "definition": 1,
    "weights": 2,
    "backend": "onnxruntime",
    "backend_version": "1.32.0",
    "device": "cpu",
    "platform": "cpu",
    "refittable": True,
    "fingerprint": "sha256:" + "5e" * 32,
    "materialised": True,
    "plan_digest": "sha256:" + "9a" * 32,
    "plan_bytes": 87_312,
    "job": "019c2a3e-7c1e-7d3a-9a44-0f6c5b0f8f11",
    "created_at": "2026-11-22T10:00:00Z",
}
VERIFICATION: dict[str, Any] = {
    "against": "reference",
    "ok": True,
    "outputs": {"last_hidden_state": {"max_abs": 1.1e-6, "relative_l2": 3.2e-7, "cosine": 1.0, "finite": True}},
}
ENGINE_DETAIL: dict[str, Any] = ENGINE | {
    "profiles": [PROFILE],
    "options": {},
    "verification": VERIFICATION,
    "facts": {"nodes": 212},
    "timings": {"refit": 0.041, "verify": 0.12, "total": 0.2},
    "device_fingerprint": FINGERPRINT | {"to_load": []},
}
RELATIVE: dict[str, Any] = {
    "number": 2,
    "method": "refit",
    "parent": 1,
    "weights": 2,
    "label": "epoch 2",
    "changed_tensors": 1,
    "created_at": "2026-11-22T10:00:00Z",
}


RETRY_CRASHED = (
    "true: compile although the compiler crashed at this before (`crashes` of the definition), which is refused "
    "otherwise (`compiler_crashes`)."
)


class ToleranceChoice(RequestBody):
    """How far an output may lie from what is expected. A bound that is left out is the usual one of the precision."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"relative_l2": 0.001}]})

    relative_l2: float | None = Field(None, ge=0, description="|a - b| / |b|.")
    cosine: float | None = Field(None, ge=-1, le=1, description="a.b / (|a||b|), at least.")
    max_abs: float | None = Field(None, ge=0, description="An output that differs nowhere by more is right.")


class VerifyInputs(RequestBody):
    """What a verification is done with."""

    inputs: Digest | None = Field(
        None,
        description="A safetensors blob with one tensor per input. Left out: that which PUT "
        "…/definitions/{version}/verification keeps, or else inputs that are made up.",
    )
    expected: Digest | None = Field(
        None,
        description="A safetensors blob with the outputs to expect of `inputs`, which then stand for the reference.",
    )
    tolerance: ToleranceChoice | None = Field(None, description="Left out: by the lowest precision computed in.")


class VerifyChoice(VerifyInputs):
    """What a new engine is compared with before it is published; a failing engine never is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"against": "reference"}, {"inputs": INPUTS, "tolerance": {"cosine": 0.999}}]}
    )

    against: Against = Field(
        "reference",
        description="reference: an independent computation of the definition. rebuild: an engine compiled anew. "
        "finite: only that all outputs are finite. none: no check.",
    )
    if_impossible: IfImpossible = Field(
        "fail",
        description="What becomes of an engine whose definition itself cannot be computed on the inputs. publish: it "
        "is published with `verification.ok` null and the reason.",
    )
    coverage: Coverage = Field(
        "auto",
        description="Whether to measure which parameters the verification sees (`verification.sees`). auto: builds do "
        "for some seconds, refits take over what is known of the engine they start from. full: to the end.",
    )


def _without_null(schema: dict[str, Any]) -> None:
    """Describe a field as a number, as it was before it might be left out: clients are generated from this."""
    schema |= schema.pop("anyOf")[0]


class BuildRequest(RequestBody):
    """What to compile."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"definition": 1, "weights": 1, "profiles": [PROFILE], "rules": [RULE]}]},
    )

    definition: Number
    weights: Number | None = Field(None, description=WEIGHTS, json_schema_extra=_without_null)
    backend: Backend | None = Field(
        None, description="Left out: tensorrt if a worker offers it, otherwise onnxruntime."
    )
    device: DeviceName | None = Field(
        None, description="The device to make it on, as GET /v1/workers names it. Left out: any with the backend."
    )
    rules: list[Any] = Field([], description="Binding rules; the definition's own apply after them.")
    profiles: list[Any] = Field(
        [],
        description="Shapes to compile for, by input: min, opt and max. Backends whose `profiles` GET /v1/workers "
        "shows as required for dynamic inputs need at least one if an input is dynamic (`profiles_required`).",
    )
    options: Options = Field(
        {}, description="Options of the backend; GET /v1/workers shows the JSON Schema of each and what is lacking."
    )
    verify: VerifyChoice | None = Field(None, description=VERIFY)
    reuse: bool = Field(default=True, description="false: compile although an equal engine exists.")
    allow_non_finite: bool = Field(default=False, description=NON_FINITE)
    preflight: Preflight = Field("refuse", description=PREFLIGHT)
    retry_crashed: bool = Field(default=False, description=RETRY_CRASHED)


class RefitRequest(RequestBody):
    """The engine to start from and the weights the new one shall have."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"engine": 1, "weights": 2}]})

    engine: Number
    weights: Number
    rules: list[Any] | None = Field(
        None,
        description="Binding rules; the definition's own apply after them. Left out: those of the engine. "
        "Others are as good: a refit changes what feeds the parameters, whatever fed them before.",
    )
    verify: VerifyChoice = VerifyChoice()
    materialise: Materialise = Field(
        "eager",
        description="lazy: publish it before its plan is written, which an alias, a download of the plan or "
        "…/materialise has done later.",
    )
    reuse: bool = Field(default=True, description="false: refit although an equal engine exists.")
    allow_non_finite: bool = Field(default=False, description=NON_FINITE)


class EngineRequest(RequestBody):
    """The weights an engine is wanted for; everything left out is chosen."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"weights": 3}]})

    weights: Number | None = Field(None, description=WEIGHTS, json_schema_extra=_without_null)
    definition: Number | None = Field(None, description="Left out: the newest.")
    backend: Backend | None = Field(
        None, description="Left out: tensorrt if a worker offers it, otherwise onnxruntime."
    )
    device: DeviceName | None = Field(
        None, description="The device that shall be able to load it, as GET /v1/workers names it. Left out: any."
    )
    rules: list[Any] | None = Field(
        None, description="Left out, like `profiles` and `options`: those of the newest engine of this definition."
    )
    profiles: list[Any] | None = None
    options: Options | None = None
    verify: VerifyChoice | None = Field(None, description=VERIFY)
    materialise: Materialise = Field("eager", description="lazy: as in a refit, if that is the cheapest way.")
    allow_non_finite: bool = Field(default=False, description=NON_FINITE)
    preflight: Preflight = Field("refuse", description=PREFLIGHT)
    retry_crashed: bool = Field(default=False, description=RETRY_CRASHED)


class RunRequest(RequestBody):
    """An engine and the uploaded safetensors file that holds one tensor per input."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"engine": 2, "inputs": INPUTS}]})

    engine: Number
    inputs: Digest


class BenchmarkRequest(RequestBody):
    """An engine to measure on fixed inputs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"engine": 2, "shapes": {"input_ids": [8, 128]}, "against": "not_refittable"}],
        }
    )

    engine: Number
    iterations: int = Field(100, ge=1, le=10_000, description="Runs that are timed, one by one.")
    warmup: int = Field(10, ge=0, le=1000, description="Runs before them that are not.")
    shapes: Annotated[dict[str, Annotated[list[int], FailFast()]], at_most(1024)] = Field(
        {},
        max_length=1024,
        description="Shapes by input; inputs left out follow from those given, or have the `opt` of a profile.",
    )
    against: Literal["not_refittable"] | None = Field(
        None,
        description="not_refittable: also compile the same definition and weights without refit support and measure "
        "that in turns with the engine, which shows what refit costs at run time.",
    )
    layers: bool = Field(default=True, description="Whether to time each layer as well.")


class VerifyRequest(VerifyInputs):
    """What to compare the engine with."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"against": "rebuild"}]})

    against: Literal["reference", "rebuild", "finite"] = "reference"
    coverage: Coverage = Field("auto", description="full: also measure which parameters the verification sees.")


class DefaultVerification(RequestBody):
    """What the engines of a definition are verified with if a request says nothing."""

    model_config = ConfigDict(
        from_attributes=True, json_schema_extra={"examples": [{"inputs": INPUTS, "tolerance": {"cosine": 0.999}}]}
    )

    inputs: Digest = Field(description="A safetensors blob with one tensor per input.")
    tolerance: ToleranceChoice | None = None


class EngineAnswer(BaseModel):
    """An engine; `parent` is the one it was refitted from."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ENGINE]})

    number: int
    method: str = Field(description="build or refit.")
    parent: int | None
    definition: int
    weights: int
    backend: str
    backend_version: str
    device: str
    platform: str = Field(description="The machines its plan works on, as `loads` of a worker's backend lists them.")
    refittable: bool = Field(description="Whether other weights can be put into it without compiling.")
    fingerprint: str = Field(description="Equal for engines that compute the same.")
    materialised: bool = Field(
        description="Whether its plan exists as a file. One refitted lazily runs all the same, and is written by "
        "…/materialise, by an alias, or by a download of its plan."
    )
    plan_digest: str | None = Field(description="Null until materialised.")
    plan_bytes: int | None
    job: str = Field(validation_alias="job_id", description="The job that made it.")
    created_at: datetime


class EngineFingerprintAnswer(FingerprintAnswer):
    """The device for which a plan was compiled, and what another device must share with it to load the plan."""

    model_config = ConfigDict(json_schema_extra={"examples": [FINGERPRINT | {"to_load": ["compute_capability"]}]})

    to_load: list[str] = Field(
        description="The facts that must be equal on a device that loads the plan. The others decide how fast it runs. "
        "The version of the backend must be equal as well; `platform` says both to this service."
    )


class EngineDetailAnswer(EngineAnswer):
    """An engine with how it was compiled, what its verification found, and the seconds its phases took."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ENGINE_DETAIL]})

    profiles: list[Any]
    options: dict[str, Any]
    verification: dict[str, Any]
    facts: dict[str, Any] = Field(description="What the backend tells of it.")
    timings: dict[str, Any]
    device_fingerprint: EngineFingerprintAnswer | None = Field(
        description="Of the device for which its plan was compiled; null if an earlier release did that."
    )


class RelativeAnswer(BaseModel):
    """One engine of a lineage; `changed_tensors` counts those that differ from its parent's weights."""

    model_config = ConfigDict(json_schema_extra={"examples": [RELATIVE]})

    number: int
    method: str
    parent: int | None
    weights: int
    label: str | None = Field(description="The label of its weights.")
    changed_tensors: int | None = Field(description="Added, removed or changed; null for a build.")
    created_at: datetime


class LineageAnswer(BaseModel):
    """Where an engine comes from and what came of it.

    If `ancestors_complete` or `descendants_complete` is false, the lineage of the last one listed goes on.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "engine": RELATIVE,
                    "ancestors": [
                        RELATIVE
                        | {"number": 1, "method": "build", "parent": None, "weights": 1, "changed_tensors": None}
                    ],
                    "descendants": [],
                    "ancestors_complete": True,
                    "descendants_complete": True,
                }
            ]
        }
    )

    engine: RelativeAnswer
    ancestors: list[RelativeAnswer] = Field(description="Nearest first, up to the first build.")
    descendants: list[RelativeAnswer] = Field(description="Children, then their children, and so on.")
    ancestors_complete: bool
    descendants_complete: bool


class ManifestAnswer(BaseModel):
    """Everything that says how an engine came to be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "minilm",
                    "engine": 2,
                    "method": "refit",
                    "created_at": "2026-11-22T10:00:00Z",
                    "fingerprint": ENGINE["fingerprint"],
                    "definition": {
                        "version": 1,
                        "digest": "sha256:" + "d1" * 32,
                        "source": {"family": "bert"},
                        "created_at": "2026-11-22T09:00:00Z",
                    },
                    "weights": {
                        "version": 2,
                        "digest": "sha256:" + "e2" * 32,
                        "label": "epoch 2",
                        "base": 1,
                        "tensor_count": 103,
                        "bytes": 90_856_448,
                        "created_at": "2026-11-22T09:30:00Z",
                    },
                    "binding": {"ok": True, "digest": "sha256:" + "b3" * 32, "problems": [], "bindings": []},
                    "rules": [],
                    "backend": {
                        "name": "onnxruntime",
                        "version": "1.32.0",
                        "device": "cpu",
                        "platform": "cpu",
                        "device_fingerprint": ENGINE_DETAIL["device_fingerprint"],
                        "options": {},
                    },
                    "profiles": [PROFILE],
                    "plan": {
                        "digest": ENGINE["plan_digest"],
                        "bytes": 87_312,
                        "signature": "c4" * 64,
                        "root": ENGINE["plan_digest"],
                    },
                    "parents": [{"number": 1, "method": "build", "weights": 1}],
                    "parents_complete": True,
                    "job": {
                        "id": ENGINE["job"],
                        "kind": "refit",
                        "attempts": 1,
                        "worker": "gpu-7:4121:9f3a",
                        "created_at": "2026-11-22T10:00:00Z",
                        "started_at": "2026-11-22T10:00:00.010Z",
                        "finished_at": "2026-11-22T10:00:00.210Z",
                    },
                    "timings": ENGINE_DETAIL["timings"],
                    "verification": VERIFICATION,
                    "facts": ENGINE_DETAIL["facts"],
                    "service_version": "0.1.0",
                }
            ]
        }
    )

    model: str
    engine: int
    method: str
    created_at: datetime
    fingerprint: str
    definition: dict[str, Any]
    weights: dict[str, Any]
    binding: dict[str, Any]
    rules: list[Any]
    backend: dict[str, Any]
    profiles: list[Any]
    plan: dict[str, Any] = Field(
        description="Digest, bytes and signature; null until it is materialised, with `base` naming the engine whose "
        "plan this one is loaded from until then. `root` is the digest of the plan that was compiled."
    )
    parents: list[dict[str, Any]] = Field(description="Nearest first, up to the first build.")
    parents_complete: bool
    job: dict[str, Any]
    timings: dict[str, Any] = Field(description="Seconds by stage; total is the whole job's.")
    verification: dict[str, Any]
    facts: dict[str, Any]
    service_version: str | None = Field(description="The release of this service that published it.")
