"""Weight versions as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.artifacts.fields import Digest
from app.http.fields import Number, at_most
from app.http.pagination import Listing
from app.http.request_body import RequestBody
from app.weights.diff import Change
from app.weights.tables import MAX_NON_FINITE

FILE = "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TENSOR: dict[str, Any] = {
    "name": "embeddings.word_embeddings.weight",
    "dtype": "F32",
    "shape": [30522, 384],
    "blake3": "0f4a1c06ce1a4a4b6f3cd1a3a2b0ab9eb4f0b2b2f6b1d2f7c3a94d0c59c9a0c1",
    "blob": FILE,
    "offset": 11848,
    "nbytes": 46881792,
}
EXPORT_REQUEST: dict[str, Any] = {"onnx": "sha256:" + "3c" * 32, "definition": 1, "label": "epoch 3"}
VERSION: dict[str, Any] = {
    "version": 2,
    "digest": "sha256:6ab13cbb2b5e1f8bb1f21dd8e9e8cfe7bdb8b4b2e7e9b07a2b8d7d7e1c1e3a55",
    "tensor_count": 103,
    "bytes": 90856448,
    "base": 1,
    "label": "epoch 2",
    "non_finite": [],
    "non_finite_count": 0,
    "created_at": "2026-11-22T10:00:00Z",
}
NON_FINITE: dict[str, Any] = {"name": TENSOR["name"], "nan": 3, "inf": 1}
CHANGE: dict[str, Any] = {
    "name": TENSOR["name"],
    "change": "changed",
    "before": TENSOR,
    "after": TENSOR | {"blake3": "9d" * 32, "blob": "sha256:" + "1e" * 32, "offset": 136},
}


class WeightsRequest(RequestBody):
    """The uploaded checkpoint files of a version: all shards, or only what changed from `base`. Or an ONNX file."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"files": [FILE], "base": 1, "label": "epoch 2"}, EXPORT_REQUEST]}
    )

    files: list[Digest] = Field(
        default=[],
        min_length=1,
        max_length=1000,
        description="safetensors, PyTorch (.pt, .pth, .bin), numpy (.npz) or GGUF files, also of several formats. The "
        "index of a sharded checkpoint (model.safetensors.index.json) may be among them: then the files must have the "
        "tensors that it lists.",
    )
    base: Number | None = Field(None, description="The version whose other tensors this one keeps.")
    label: str | None = Field(None, max_length=200)
    onnx: Digest | None = Field(
        None,
        description="Another ONNX export of the definition's model, instead of `files`. Its weights may have other "
        "names and another order; the version has them under the names of the definition's parameters.",
    )
    definition: Number | None = Field(
        None, description="The definition that `onnx` is matched to; the model's newest unless given."
    )
    external_data: Annotated[dict[str, Digest], at_most(1000)] = Field(
        {},
        description="The files that hold data of the ONNX file, each by the location that the ONNX file has for it.",
        max_length=1000,
    )

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if bool(self.files) == (self.onnx is not None):
            raise ValueError("give either `files` or `onnx`")
        if self.onnx is not None and self.base is not None:
            raise ValueError("`base` goes with `files`; an ONNX file has all weights")
        if self.onnx is None and (self.definition is not None or self.external_data):
            raise ValueError("`definition` and `external_data` go with `onnx`")
        return self


class NonFiniteAnswer(BaseModel):
    """A tensor with elements that are NaN or infinite, and how many of each."""

    model_config = ConfigDict(json_schema_extra={"examples": [NON_FINITE]})

    name: str
    nan: int
    inf: int


class WeightsAnswer(BaseModel):
    """A weight version; `digest` is over names, dtypes, shapes and values, however they lie in files."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [VERSION]})

    version: int
    digest: str
    tensor_count: int
    bytes: int
    base: int | None
    label: str | None
    non_finite: list[NonFiniteAnswer] | None = Field(
        validation_alias="first_non_finite",
        description=f"Tensors with NaN or infinities, the first {MAX_NON_FINITE} by name. Null if they were not "
        "counted, as in versions that an earlier release made.",
    )
    non_finite_count: int | None = Field(description="How many tensors have any.")
    created_at: datetime

    @field_validator("non_finite", mode="before")
    @classmethod
    def _named(cls, rows: list[Any] | None) -> list[dict[str, Any]] | None:
        if rows is None:
            return None
        return [{"name": name, "nan": nan, "inf": inf} for name, nan, inf in rows]


class TensorAnswer(BaseModel):
    """One tensor; its bytes start at `offset` of the blob and have the given BLAKE3."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [TENSOR]})

    name: str
    dtype: str
    shape: list[int]
    blake3: str
    blob: str
    offset: int
    nbytes: int


class TensorChangeAnswer(BaseModel):
    """One tensor that differs; `before` is null if it was added, `after` if it was removed."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [CHANGE]})

    name: str
    change: Change
    before: TensorAnswer | None
    after: TensorAnswer | None


class DiffAnswer(Listing[TensorChangeAnswer]):
    """What changed between two versions: totals, and one page of the tensors that differ."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "from": 1,
                    "to": 2,
                    "added": 0,
                    "removed": 0,
                    "changed": 1,
                    "unchanged": 102,
                    "bytes_changed": 46881792,
                    "data": [CHANGE],
                    "has_more": False,
                    "next_cursor": None,
                }
            ]
        },
    )

    from_: int = Field(alias="from")
    to: int
    added: int
    removed: int
    changed: int
    unchanged: int
    bytes_changed: int = Field(description="Bytes, in the newer version, of what was added or changed.")
