"""The facts that a backend tells of an engine, in the form that the engine's row holds."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class EngineFacts(BaseModel):
    """The facts that this service acts on. All others that a backend tells are kept as they are.

    `fixed_parameters` are the parameters that the compiled engine has not kept as weights, so no refit can change them.
    `changed` counts the parameters whose values differ from the parent's. `warm` says whether an engine of the same
    compiled plan was resident. If the backend does not tell a fact, the row does not have it.
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
        """Return these facts together with `more`."""
        return EngineFacts.model_validate({**self.to_json(), **more})


def read_facts(row: Mapping[str, Any]) -> EngineFacts:
    """Return the facts of an engine's row."""
    return EngineFacts.model_validate(row)
