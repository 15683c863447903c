"""Definitions as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.artifacts.fields import Digest
from app.definitions.family import Precision, family_names
from app.definitions.limits import MAX_CONVERTED_OPSET, MIN_OPSET
from app.http.fields import at_most
from app.http.request_body import RequestBody

FAMILY_REQUEST: dict[str, Any] = {
    "family": "bert",
    "config": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "precision": "fp32",
}
DECODER_REQUEST: dict[str, Any] = {
    "family": "gpt2",
    "config": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
    },
    "precision": "fp16",
}
FILE_REQUEST: dict[str, Any] = {"onnx": "sha256:0c6f2f1a3b5d5f0e2a7cbb2f0b8d4c6e9a1b3c5d7e9f0a2b4c6d8e0f1a3b5c7d"}
LARGE_FILE_REQUEST: dict[str, Any] = FILE_REQUEST | {"external_data": {"model.onnx.data": "sha256:" + "7a" * 32}}
CONSTANT: dict[str, Any] = {"name": "upsample.scales", "bytes": 16, "reason": "setting"}
INPUT: dict[str, Any] = {"name": "input_ids", "dtype": "I64", "shape": ["batch", "sequence"], "low": 0, "high": 30522}
OUTPUT: dict[str, Any] = {"name": "last_hidden_state", "dtype": "F32", "shape": ["batch", "sequence", 384]}
PARAMETER: dict[str, Any] = {"name": "embeddings.word_embeddings.weight", "dtype": "F32", "shape": [30522, 384]}
DEFINITION: dict[str, Any] = {
    "version": 1,
    "digest": "sha256:5d1c0f7b9a3e4c6d8b2f1a0e9d7c5b3a1f0e8d6c4b2a09f7e5d3c1b0a9f8e7d6",
    "source": FAMILY_REQUEST | {"opset": 17, "warnings": []},
    "inputs": [INPUT],
    "outputs": [OUTPUT],
    "parameter_count": 103,
    "weights": None,
    "constants": [],
    "constant_count": 0,
    "constant_bytes": 0,
    "created_at": "2026-11-22T10:00:00Z",
}

CRASH: dict[str, Any] = {
    "backend": "tensorrt",
    "backend_version": "8.6.1",
    "profiles": [],
    "options": {"optimization_level": 5},
    "layer": "/encoder/layer.0/attention/MatMul",
    "detail": "The engine host was killed by SIGSEGV.",
    "job": "019c2a3e-7c1e-7d3a-9a44-0f6c5b0f8f11",
    "at": "2026-11-22T10:00:00Z",
}
_FAMILIES = " or ".join(f"`{name}`" for name in family_names())


class DefinitionRequest(RequestBody):
    """Either a family with its Hugging Face config.json, or the digest of an uploaded ONNX file."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [FAMILY_REQUEST, DECODER_REQUEST, FILE_REQUEST, LARGE_FILE_REQUEST]}
    )

    family: str | None = Field(None, description=f"The architecture: {_FAMILIES}.", max_length=64)
    config: dict[str, Any] | None = Field(
        None,
        description="The checkpoint's config.json; missing keys have the defaults of transformers. "
        '`"add_pooling_layer": false` leaves the pooler of `bert` out, `"add_lm_head": false` the head of `gpt2`.',
    )
    precision: Precision | None = Field(None, description="Of a family's parameters; `fp32` unless given.")
    onnx: Digest | None = Field(None, description="An ONNX file sent with PUT /v1/blobs/<digest>.")
    external_data: Annotated[dict[str, Digest], at_most(1000)] = Field(
        {},
        description="The files that hold data of the ONNX file, sent likewise, each by the location that the ONNX file "
        "has for it. They may be of any size; weights are used where they lie in them.",
        max_length=1000,
    )
    opset: int | None = Field(
        None,
        description="The version of ai.onnx to convert the ONNX file to, for a backend that does not take its own: "
        "TensorRT 8.6 takes at most 17.",
        ge=MIN_OPSET,
        le=MAX_CONVERTED_OPSET,
    )

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if (self.family is None) == (self.onnx is None):
            raise ValueError("give either `family` and `config`, or `onnx`")
        if (self.config is None) != (self.family is None):
            raise ValueError("`family` and `config` go together")
        if self.onnx is not None and self.precision is not None:
            raise ValueError("`precision` is for families; an ONNX file has its own element types")
        if self.external_data and self.onnx is None:
            raise ValueError("`external_data` goes with `onnx`")
        if self.opset is not None and self.onnx is None:
            raise ValueError("`opset` goes with `onnx`; a family has its own")
        return self


class InputAnswer(BaseModel):
    """An input; symbols in `shape` are dynamic. If `high` is given, integers fed to it must lie in [low, high)."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [INPUT]})

    name: str
    dtype: str
    shape: list[int | str]
    low: int = 0
    high: int | None


class OutputAnswer(BaseModel):
    """An output; `shape` is null if it could not be inferred."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [OUTPUT]})

    name: str
    dtype: str
    shape: list[int | str] | None


class ParameterAnswer(BaseModel):
    """One weight slot."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [PARAMETER]})

    name: str
    dtype: str
    shape: list[int]


class ConstantAnswer(BaseModel):
    """A floating-point tensor that stayed in the graph, so that no weight version changes it."""

    model_config = ConfigDict(json_schema_extra={"examples": [CONSTANT]})

    name: str
    bytes: int
    reason: str = Field(
        description="`setting`: a scale of a size, a bound or the like. `formula`: what a mask fills in, an "
        "epsilon. `literal`: a number that the model's code wrote. `output`: an output of the graph. `empty`: no "
        "elements in it. `argument`: a default for what a body is given.",
    )


class CrashAnswer(BaseModel):
    """A version of a backend whose compiler crashed twice on the definition with these profiles and options."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [CRASH]})

    backend: str
    backend_version: str
    profiles: list[Any]
    options: dict[str, Any]
    layer: str | None = Field(description="What was being compiled, in the compiler's words; null if it did not say.")
    detail: str = Field(description="How the compiler ended.")
    job: str = Field(validation_alias="job_id", description="The job in which it did; its `error` has the log's end.")
    at: datetime


class DefinitionAnswer(BaseModel):
    """A definition. `source` says what it came from, `weights` is the version its ONNX file had embedded.

    `constants` are the largest of the floating-point tensors that stayed in the graph. `constant_count` and
    `constant_bytes` count all of them. Definitions that an earlier release made have null for each.
    """

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [DEFINITION]})

    version: int
    digest: str
    source: dict[str, Any]
    inputs: list[InputAnswer]
    outputs: list[OutputAnswer]
    parameter_count: int
    weights: int | None
    constants: list[ConstantAnswer] | None = None
    constant_count: int | None = None
    constant_bytes: int | None = None
    crashes: list[CrashAnswer] = Field(
        [],
        description="What compilers crashed at. A build of the same is refused (`compiler_crashes`) until another "
        "version of the backend comes, or if it says `retry_crashed`.",
    )
    created_at: datetime

    @field_validator("constants", mode="before")
    @classmethod
    def _list(cls, stored: Any) -> Any:  # noqa: ANN401 - whatever the column holds
        return stored["listed"] if isinstance(stored, dict) else stored
