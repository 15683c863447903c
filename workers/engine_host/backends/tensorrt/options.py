"""Build options with their defaults filled in."""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

from app.fleet.option_schemas import reasons_against
from workers.channel.messages import BackendError


def settled(options: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option that has a value or a default; BackendError "bad_option" where one is refused.

    `declared` are a worker's capabilities. The service has checked the options against what some worker offers, not
    always against what this one does.
    """
    schemas, lacks = declared["options"], declared["lacks"]
    faults = [fault for name, value in options.items() if (fault := _fault(name, value, schemas, lacks))]
    faults += reasons_against(options, {name: [schema] for name, schema in schemas.items()}, declared["conflicts"])
    if faults:
        raise BackendError("bad_option", f"{'; '.join(faults)}. GET /v1/workers shows the options of each worker.")
    return completed(options, declared)


def completed(options: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an engine that is there, and the defaults; who built it may take more than this worker."""
    schemas = declared["options"]
    return {name: schema["default"] for name, schema in schemas.items() if "default" in schema} | dict(options)


def _fault(name: str, value: object, schemas: Mapping[str, Any], lacks: Mapping[str, str]) -> str:
    if name in schemas and Draft202012Validator(schemas[name]).is_valid(value):
        return ""
    reason = lacks.get(f"{name}={value}") or lacks.get(name) or ("bad value" if name in schemas else "unknown option")
    return f"{name}={value!r}: {reason}"
