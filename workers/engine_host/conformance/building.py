"""What a backend promises of its offer and of builds."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, SchemaError

from workers.engine_host.conformance.harness import Check, Harness, keep, refused, weights

ABILITIES = ("build", "refit", "run", "plan_holds_weights")
OTHER_VALUE = {"no": "such value"}


def check_the_offer_can_be_shown(harness: Harness) -> None:
    """The fleet shows the offer as JSON. Every backend makes plans for some platform and says what it is able to do."""
    offered = harness.backend.offered
    keep(bool(offered.version), "the offer has no version")
    keep(bool(offered.makes), "the offer names no platform that can be compiled for")
    keep(_is_json(offered.capabilities), "the capabilities are not JSON")
    missing = [name for name in ABILITIES if not isinstance(offered.capabilities.get(name), bool)]
    keep(not missing, f"the capabilities do not say whether it is able to: {missing}")


def check_options_have_schemas_that_accept_their_defaults(harness: Harness) -> None:
    """Each build option has a JSON Schema, which accepts the default if there is one."""
    faults = list(_option_faults(harness))
    keep(not faults, "; ".join(faults))


def check_a_build_writes_its_plan_and_says_its_digest(harness: Harness) -> None:
    """When the build returns, the whole plan lies at the path asked for."""
    request = harness.request(harness.sources(weights(1)))
    built, _ = harness.build(request)
    keep(built.plan == request.plan, f"the plan is said to lie at {built.plan}, not at {request.plan}")
    keep(Path(request.plan).is_file(), "no plan was written")
    data = Path(request.plan).read_bytes()
    keep(built.plan_digest == f"sha256:{hashlib.sha256(data).hexdigest()}", "the digest is not that of the plan")
    keep(built.nbytes == len(data), f"the plan has {len(data)} bytes, not {built.nbytes}")


def check_a_build_is_for_the_default_platform(harness: Harness) -> None:
    """A plan is for the first platform of `makes` unless an option asks for another one."""
    built, _ = harness.build(harness.request(harness.sources(weights(1))))
    default = harness.backend.offered.makes[0]
    keep(built.platform == default, f"the plan is for {built.platform}, not for {default}")


def check_a_build_is_of_the_version_offered(harness: Harness) -> None:
    """Engines are told apart by the version of the backend that made them."""
    built, _ = harness.build(harness.request(harness.sources(weights(1))))
    keep(built.backend_version == harness.backend.offered.version, "the build is of another version than the offer")


def check_a_build_returns_what_it_can_load(harness: Harness) -> None:
    """A build returns the engine loaded if this device can load it, and None otherwise."""
    _, engine = harness.build(harness.request(harness.sources(weights(1))))
    keep((engine is not None) == harness.runs, "the engine was not returned" if harness.runs else "an engine came back")


def check_facts_and_stages_can_be_recorded(harness: Harness) -> None:
    """Facts are JSON; stages have seconds and bytes."""
    built, _ = harness.build(harness.request(harness.sources(weights(1))))
    keep(_is_json(built.facts), "the facts are not JSON")
    keep(all(one.seconds >= 0 and one.nbytes >= 0 for one in built.stages.values()), "a stage took less than nothing")


def check_options_that_are_not_declared_are_refused(harness: Harness) -> None:
    """An option without a schema, and a value that the schema does not accept, are "bad_option"."""
    sources = harness.sources(weights(1))
    options = harness.backend.offered.capabilities.get("options", {})
    strange = {name: OTHER_VALUE for name, schema in options.items() if not _accepts(schema, OTHER_VALUE)}
    for name, value in ({"no_such_option": 1} | strange).items():
        request = harness.request(sources, options={**harness.options, name: value})
        refused(partial(harness.build, request), "bad_option", f"the option {name}={value}")


def check_every_parameter_must_have_weights(harness: Harness) -> None:
    """A build without weights for a parameter is "missing_weights"."""
    request = harness.request(harness.sources(weights(1))[1:])
    refused(lambda: harness.build(request), "missing_weights", "a build without weights for one parameter")


def check_weights_must_fit_their_parameter(harness: Harness) -> None:
    """Weights of another shape or dtype than the definition's are "wrong_weights"."""
    right = weights(1)
    for other in (right["0.weight"][:4], right["0.weight"].astype(np.float16)):
        request = harness.request(harness.sources(right | {"0.weight": other}))
        what = f"a build with {other.dtype}{list(other.shape)} for float32[8, 8]"
        refused(partial(harness.build, request), "wrong_weights", what)


def check_a_lost_file_is_a_backend_error(harness: Harness) -> None:
    """Weights whose file is gone are "file_failed": the worker fetches the file again."""
    sources = harness.sources(weights(1))
    Path(sources[0].tensors[0].path).unlink()
    refused(lambda: harness.build(harness.request(sources)), "file_failed", "a build whose weights are gone")


def check_a_build_that_fails_leaves_no_plan(harness: Harness) -> None:
    """After a build that failed, no file lies at the path of the plan. Other checks see to it that the build fails."""
    lost = harness.sources(weights(1))
    Path(lost[0].tensors[0].path).unlink()
    misfit = harness.sources(weights(1) | {"0.weight": weights(1)["0.weight"][:4]})
    for sources in (harness.sources(weights(1))[1:], misfit, lost):
        request = harness.request(sources)
        try:
            harness.build(request)
        except Exception:  # noqa: BLE001 - which error it should be is another promise
            keep(not Path(request.plan).exists(), "the build failed and left a plan")


BUILDING: tuple[Check, ...] = (
    check_the_offer_can_be_shown,
    check_options_have_schemas_that_accept_their_defaults,
    check_a_build_writes_its_plan_and_says_its_digest,
    check_a_build_is_for_the_default_platform,
    check_a_build_is_of_the_version_offered,
    check_a_build_returns_what_it_can_load,
    check_facts_and_stages_can_be_recorded,
    check_options_that_are_not_declared_are_refused,
    check_every_parameter_must_have_weights,
    check_weights_must_fit_their_parameter,
    check_a_lost_file_is_a_backend_error,
    check_a_build_that_fails_leaves_no_plan,
)


def _option_faults(harness: Harness) -> Iterator[str]:
    for name, schema in harness.backend.offered.capabilities.get("options", {}).items():
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            yield f"the schema of {name} is none: {error.message}"
            continue
        if "default" in schema and not _accepts(schema, schema["default"]):
            yield f"the schema of {name} does not accept its default {schema['default']!r}"


def _accepts(schema: Mapping[str, Any], value: object) -> bool:
    return Draft202012Validator(schema).is_valid(value)


def _is_json(value: Mapping[str, Any]) -> bool:
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
