"""Build options checked against what a backend declares, with their defaults filled in."""

from collections.abc import Mapping
from typing import Any

from app.fleet.option_schemas import OptionConflict, fault_of, reasons_against
from workers.channel.messages import BackendError


def settled(options: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option that has a value or a default; raises BackendError "bad_option" if one is refused.

    `declared` are a backend's capabilities. The service has checked the options against the offer of some worker, which
    may be another one than this.
    """
    schemas = {name: [schema] for name, schema in declared["options"].items()}
    found = {name: fault_of(name, value, schemas, declared.get("lacks", {})) for name, value in options.items()}
    faults = [f"{name}: {fault.detail}" for name, fault in found.items() if fault]
    conflicts = [OptionConflict(**conflict) for conflict in declared.get("conflicts", ())]
    faults += reasons_against(options, schemas, conflicts)
    if faults:
        raise BackendError("bad_option", f"{'; '.join(faults)}. GET /v1/workers shows the options of each worker.")
    return completed(options, declared)


def completed(options: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an existing engine, with the defaults filled in.

    They are not checked, because the worker that built the engine may take more options than this one.
    """
    schemas = declared["options"]
    return {name: schema["default"] for name, schema in schemas.items() if "default" in schema} | dict(options)
