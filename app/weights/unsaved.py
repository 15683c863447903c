"""A weight version that is not recorded yet."""

import json
from dataclasses import dataclass
from typing import Any

from app.database import JsonText
from app.weights.manifest import Manifest, non_finite_to_json


@dataclass(frozen=True, slots=True)
class UnsavedWeights:
    """The columns of a weight version, computed before the transaction that records it."""

    digest: str
    tensor_count: int
    bytes: int
    manifest: JsonText
    blobs: tuple[str, ...]
    non_finite: list[Any] | None

    @classmethod
    def of(cls, manifest: Manifest) -> "UnsavedWeights":
        """Compute the digest and serialize the manifest, which takes a second for 100,000 tensors."""
        text = JsonText(json.dumps(manifest.to_json()))
        non_finite = non_finite_to_json(manifest.tensors.values())
        return cls(manifest.digest, len(manifest.tensors), manifest.nbytes, text, manifest.blobs, non_finite)
