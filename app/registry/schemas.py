"""Models as clients see them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.http.fields import at_most
from app.http.request_body import RequestBody

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
Label = Annotated[str, StringConstraints(max_length=256)]

MODEL: dict[str, Any] = {
    "name": "minilm",
    "description": "Sentence embeddings",
    "labels": {"team": "search"},
    "created_at": "2026-11-22T10:00:00Z",
}


class ModelRequest(RequestBody):
    """A model to register; names are lower-case letters, digits, '.', '_' and '-'."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "minilm", "description": "Sentence embeddings", "labels": {"team": "search"}}]
        },
    )

    name: Name
    description: str = Field("", max_length=4096)
    labels: Annotated[dict[Label, Label], at_most(64)] = Field({}, max_length=64)


class ModelAnswer(BaseModel):
    """A registered model."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [MODEL]})

    name: str
    description: str
    labels: dict[str, str]
    created_at: datetime
