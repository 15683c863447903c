"""What is asked about a build before it is made, and the answer."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.engines.estimates import Basis
from app.engines.schemas import PROFILE, BuildRequest

Version = Annotated[str, StringConstraints(pattern=r"^[0-9][0-9A-Za-z.+_-]{0,63}$")]

FINDING: dict[str, Any] = {
    "operator": "STFT",
    "reason": "the parser does not know this operator",
    "count": 1,
    "nodes": ["node_stft_4"],
}
VERDICT: dict[str, Any] = {
    "version": "8.6",
    "alive": False,
    "taken": False,
    "source": "table tensorrt-8.6",
    "operators": {"Add": 1, "MatMul": 1, "STFT": 1},
    "rewrites": [{"rewrite": "folded", "count": 2, "nodes": ["n1", "n2"], "meaning": "computed before the build"}],
    "refused": [FINDING],
    "doubtful": [],
    "refittable": {"count": 2, "fixed_count": 0, "fixed": [], "why": ""},
    "notes": [],
    "remedies": ['Use another backend: "onnxruntime" takes most of what ONNX has.'],
}
ESTIMATE: dict[str, Any] = {
    "basis": "similar_size",
    "builds": 3,
    "seconds": 41.2,
    "weights_bytes": 91_000_000,
    "plan_bytes": 93_200_000,
    "largest_value": {"name": "attention", "shape": [32, 12, 256, 256], "bytes": 100_663_296},
    "memory_bytes": 284_863_296,
    "fixed_parameters": [],
}


class CheckRequest(BuildRequest):
    """The build that may be asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"definition": 1, "weights": 1, "backend": "tensorrt", "versions": ["8.6"], "profiles": [PROFILE]}
            ]
        }
    )

    versions: list[Version] = Field(
        [],
        max_length=16,
        description="The versions of the backend to ask about. Left out: those of the workers alive that could make "
        "the engine, or all that are known if there are none.",
    )


class FindingAnswer(BaseModel):
    """One reason against some nodes of one operator; `nodes` are the first 20."""

    model_config = ConfigDict(json_schema_extra={"examples": [FINDING]})

    operator: str
    reason: str
    count: int
    nodes: list[str]


class RefittableAnswer(BaseModel):
    """How many parameters refits can change; `fixed` are the first 20 that they cannot, and `why` says the reason."""

    model_config = ConfigDict(json_schema_extra={"examples": [VERDICT["refittable"]]})

    count: int
    fixed_count: int
    fixed: list[str]
    why: str


class VerdictAnswer(BaseModel):
    """What one version of the backend makes of the definition."""

    model_config = ConfigDict(json_schema_extra={"examples": [VERDICT]})

    version: str
    alive: bool = Field(description="Whether a worker alive that could make the engine has this version.")
    taken: bool | None = Field(description="null: it cannot be told, see `doubtful`.")
    source: str = Field(description="Where this is known from.")
    operators: dict[str, int] = Field(description="Nodes by operator, once the graph is rewritten.")
    rewrites: list[dict[str, Any]] = Field(description="As `facts.rewrites` of an engine, with the meaning.")
    refused: list[FindingAnswer]
    doubtful: list[FindingAnswer] = Field(description="What may be refused.")
    refittable: RefittableAnswer
    notes: list[str]
    remedies: list[str] = Field(description="What to do about what is refused.")


class EstimateAnswer(BaseModel):
    """What the build is likely to need, by the engines that were built before."""

    model_config = ConfigDict(json_schema_extra={"examples": [ESTIMATE]})

    basis: Basis = Field(
        description="What those builds have in common with this one; none: there are none, so nothing is known."
    )
    builds: int = Field(description="How many they are.")
    seconds: float | None = Field(description="The median of what they took.")
    weights_bytes: int
    plan_bytes: int | None = Field(description="The median of their plans, scaled by the bytes of the weights.")
    largest_value: dict[str, Any] | None = Field(description="The largest value computed in the largest profile.")
    memory_bytes: int = Field(
        description="Bytes that the weights, the plan and the largest value take together. Compiling takes more."
    )
    fixed_parameters: list[str] = Field(
        description="Parameters that the newest engine of the same recipe did not keep, so no refit can change them."
    )


class CheckAnswer(BaseModel):
    """What is known of a build without a device."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "definition": 1,
                    "weights": 1,
                    "backend": "tensorrt",
                    "ok": False,
                    "problem": None,
                    "notes": [],
                    "verdicts": [VERDICT],
                    "estimate": ESTIMATE,
                }
            ]
        }
    )

    definition: int
    weights: int
    backend: str
    ok: bool | None = Field(
        description="true: a version takes the definition. false: every version refuses it. null: it cannot be told."
    )
    problem: str | None = Field(description="What is wrong on every version, or why nothing is told.")
    notes: list[str] = Field(description="What could not be checked.")
    verdicts: list[VerdictAnswer]
    estimate: EstimateAnswer
