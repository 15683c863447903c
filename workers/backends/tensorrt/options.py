"""Build options with their defaults filled in."""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

from workers.backends.base import BackendError


def settled(options: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option that has a value or a default; BackendError "bad_option" where one is refused.

    `declared` are a worker's capabilities. The service has checked the options against what some worker offers, not
    always against what this one does.
    """
    schemas, lacks = declared["options"], declared["lacks"]
    defaults = {name: schema["default"] for name, schema in schemas.items() if "default" in schema}
    complete = {**defaults, **options}
    faults = [fault for name, value in options.items() if (fault := _fault(name, value, schemas, lacks))]
    faults += [one["reason"] for one in declared["conflicts"] if Draft202012Validator(one["when"]).is_valid(complete)]
    if faults:
        raise BackendError("bad_option", f"{'; '.join(faults)}. GET /v1/workers shows the options of each worker.")
    return complete


def _fault(name: str, value: object, schemas: Mapping[str, Any], lacks: Mapping[str, str]) -> str:
    if name in schemas and Draft202012Validator(schemas[name]).is_valid(value):
        return ""
    reason = lacks.get(f"{name}={value}") or lacks.get(name) or ("bad value" if name in schemas else "unknown option")
    return f"{name}={value!r}: {reason}"
