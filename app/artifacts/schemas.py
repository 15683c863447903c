"""Blobs as clients see them."""

from pydantic import BaseModel, ConfigDict

EXAMPLE_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class BlobAnswer(BaseModel):
    """A stored blob; name its digest wherever a call takes one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"digest": EXAMPLE_DIGEST, "size": 4}]})

    digest: str
    size: int
