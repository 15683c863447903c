"""Aliases as clients see them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.http.fields import Number
from app.http.request_body import RequestBody

ALIAS: dict[str, Any] = {"alias": "production", "engine": 2, "revision": 3, "updated_at": "2026-11-22T10:00:00Z"}


class AliasRequest(RequestBody):
    """Where an alias shall point."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"engine": 2}]})

    engine: Number


class AliasAnswer(BaseModel):
    """Where an alias points; its ETag is the quoted revision."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ALIAS]})

    alias: str = Field(validation_alias="name")
    engine: int
    revision: int
    updated_at: datetime


class AliasMoveAnswer(BaseModel):
    """One step of an alias's history; `engine` is null if the alias was deleted."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={"examples": [{"engine": 2, "revision": 3, "moved_at": "2026-11-22T10:00:00Z"}]},
    )

    engine: int | None
    revision: int
    moved_at: datetime
