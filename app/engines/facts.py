"""What a backend tells of an engine, as the engine's row keeps it."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class EngineFacts(BaseModel):
    """The facts that this service acts on. Everything else that a backend tells is kept as it is.

    `fixed_parameters` are those that the compiled form has not kept as weights, so no refit can change them.
    `changed` counts the parameters whose values are not the parent's. `warm` says whether an engine of the same
    compiled plan was resident. A fact that nobody told is left out of the row.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    refittable: bool = True
    fixed_parameters: tuple[str, ...] = ()
    changed: int | None = None
    warm: bool | None = None
    service_version: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the engine's row holds."""
        return self.model_dump(mode="json", exclude_unset=True)

    def told(self, **more: object) -> "EngineFacts":
        """Return these facts and some more."""
        return EngineFacts.model_validate({**self.to_json(), **more})


def read_facts(row: Mapping[str, Any]) -> EngineFacts:
    """Return the facts of an engine's row."""
    return EngineFacts.model_validate(row)
