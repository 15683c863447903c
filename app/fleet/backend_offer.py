"""The offer of one backend by one worker. Only this file reads and writes the JSON of the offers in a worker's row."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.fleet.option_schemas import OptionConflict, Schema

PROFILES_REQUIRED = "required for dynamic inputs"
TIMINGS_STORED = "stored"
BEFORE_JOBS = "before jobs"


class BackendCapabilities(BaseModel):
    """The capabilities of a backend on a device that this service acts on. All others are kept as they are.

    `options` maps the name of each build option to a JSON Schema with a default. `lacks` gives the reason for each
    option ("name") and each value ("name=value") that the backend does not support. `profiles` is `PROFILES_REQUIRED`
    if shapes have to be given for dynamic inputs. `timing_cache` is `TIMINGS_STORED` if another process can read a
    timing cache of this backend. `preflight` is `BEFORE_JOBS` if a build that the backend's preflight refuses is not
    queued.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    options: dict[str, Schema] = {}
    lacks: dict[str, str] = {}
    conflicts: tuple[OptionConflict, ...] = ()
    profiles: str | None = None
    timing_cache: str | None = None
    preflight: str | None = None


class BackendOffer(BaseModel):
    """One backend of one worker.

    `makes` are the platforms that it compiles for, the default first. `loads` are the platforms whose engines it can
    load. `unavailable` is the reason if the backend is installed but cannot be used.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    version: str
    makes: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    capabilities: BackendCapabilities = BackendCapabilities()
    unavailable: str | None = None

    @property
    def available(self) -> bool:
        """Whether the worker can use the backend."""
        return self.unavailable is None

    @property
    def runs(self) -> bool:
        """Whether the worker can run what it compiles. A worker without a GPU may only compile for other machines."""
        return bool(self.makes) and self.makes[0] in self.loads

    @property
    def needs_profiles(self) -> bool:
        """Whether dynamic inputs need profiles: the backend compiles for given ranges of shapes only."""
        return self.capabilities.profiles == PROFILES_REQUIRED

    @property
    def keeps_timings(self) -> bool:
        """Whether another process can read a timing cache of this backend."""
        return self.capabilities.timing_cache == TIMINGS_STORED

    @property
    def checks_before_jobs(self) -> bool:
        """Whether the backend's preflight is asked before a build is queued."""
        return self.capabilities.preflight == BEFORE_JOBS

    def to_json(self) -> dict[str, Any]:
        """Return what the worker's row holds; what the worker did not say is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_offers(row: Mapping[str, Any]) -> dict[str, BackendOffer]:
    """Return the backends of a worker's row, by name."""
    return {name: BackendOffer.model_validate(offer) for name, offer in row.items()}
