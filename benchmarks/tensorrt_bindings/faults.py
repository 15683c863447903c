"""What the adapter uses of a release that does not have it, although no capability keeps the adapter from it there."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.tensorrt_bindings.callbacks import CALLBACKS
from benchmarks.tensorrt_bindings.spans import within
from benchmarks.tensorrt_bindings.uses import Use

# The capability without which the adapter does not come to use a name; a call is known by how many arguments it has.
GUARDS: Final[Mapping[str, str]] = {
    "BuilderFlag.EXCLUDE_LEAN_RUNTIME": "version_compatible",
    "BuilderFlag.FP16": "fp16_flag",
    "BuilderFlag.REFIT_INDIVIDUAL": "refit_individual",
    "BuilderFlag.STRIP_PLAN": "strip_plan",
    "BuilderFlag.VERSION_COMPATIBLE": "version_compatible",
    "BuilderFlag.WEIGHT_STREAMING": "weight_streaming",
    "ComputeCapability": "targets",
    "IBuilderConfig.num_compute_capabilities": "targets",
    "IBuilderConfig.progress_monitor": "progress_monitor",
    "IBuilderConfig.set_compute_capability": "targets",
    "ICudaEngine.create_serialization_config": "serialization_config",
    "ICudaEngine.device_memory_size": "not memory_size_v2",
    "ICudaEngine.device_memory_size_v2": "memory_size_v2",
    "ICudaEngine.serialize_with_config": "serialization_config",
    "ICudaEngine.streamable_weights_size": "weight_streaming",
    "ICudaEngine.weight_streaming_budget_v2": "weight_streaming",
    "INetworkDefinition.mark_weights_refittable": "refit_individual",
    "IProgressMonitor.phase_finish": "progress_monitor",
    "IProgressMonitor.phase_start": "progress_monitor",
    "IProgressMonitor.step_complete": "progress_monitor",
    "ISerializationConfig.clear_flag": "serialization_config",
    "ISerializationConfig.set_flag": "serialization_config",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "explicit_batch",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "strongly_typed",
    "ParserError.node_name": "parser_names_operators",
    "ParserError.node_operator": "parser_names_operators",
    "Refitter.get_named_weights": "reads_weights",
    "Refitter.get_weights_location": "reads_weights",
    "Refitter.refit_cuda_engine_async": "async_refit",
    "Refitter.set_named_weights/3": "async_refit",
    "Refitter.unset_named_weights": "async_refit",
    "SerializationFlag": "serialization_config",
    "SerializationFlag.EXCLUDE_WEIGHTS": "serialization_config",
    "SerializationFlag.INCLUDE_REFIT": "include_refit",
    "Weights/3": "bfloat16",  # by address: of types that numpy lacks, or on the device
    "bfloat16": "bfloat16",
    "int64": "int64",
}
LATER: Final = {"IOutputAllocator.reallocate_output_async"}  # releases without it call `reallocate_output`


def faults(table: Mapping[str, Any], uses: Sequence[Use]) -> list[str]:
    """Return a line for each use that a release of the table does not allow; raises KeyError for an unknown guard."""
    releases = [one["release"] for one in table["releases"]]
    return [line for use in uses for line in _faults(table, use, releases)]


def idle_guards(uses: Sequence[Use]) -> set[str]:
    """Return the guards of what the adapter does not use."""
    return set(GUARDS) - {use.name for use in uses} - {_call(use) for use in uses}


def _faults(table: Mapping[str, Any], use: Use, releases: Sequence[str]) -> Iterator[str]:
    there, fitting = _there(table, use, releases), _fitting(table, use, releases)
    guard = GUARDS.get(_call(use), GUARDS.get(use.name, ""))
    for one in table["releases"]:
        release = one["release"]
        if guard and not _lets(guard, one["capabilities"]):
            continue
        if release not in there:
            yield f"{release} has no {use.name}"
        elif release not in fitting:
            how = f"{use.positional} arguments {list(use.keywords)}".replace(" []", "")
            yield f"{release} does not take {use.name} with {how}"


def _there(table: Mapping[str, Any], use: Use, releases: Sequence[str]) -> set[str]:
    if use.name in LATER:
        return set(releases)
    if use.member in CALLBACKS.get(use.owner, ()):
        return within(table["callbacks"].get(use.member, ""), releases)
    return within(table["members"].get(use.name, ""), releases)


def _fitting(table: Mapping[str, Any], use: Use, releases: Sequence[str]) -> set[str]:
    """Return the releases that have an overload for a call; all releases if the use is none."""
    if use.positional < 0:
        return set(releases)
    overloads = table["signatures"].get(use.name if use.owner else f"{use.member}.__init__", {})
    return {release for text, having in overloads.items() if takes(text, use) for release in within(having, releases)}


def takes(signature: str, use: Use) -> bool:
    """Whether an overload can be called so: "(self: Refitter, name: str, weights: Weights) -> bool", for example."""
    parameters = _parameters(signature)[1:]
    named = dict(parameters[use.positional :])
    if use.positional > len(parameters) or not set(use.keywords) <= named.keys():
        return False
    return all(has_default for name, has_default in named.items() if name not in use.keywords)


def _parameters(signature: str) -> list[tuple[str, bool]]:
    """Return the name of each parameter, and whether it has a default."""
    inner = signature[1 : signature.rindex(")")]
    inner = re.sub(r"<[^>]*>", "default", inner)
    while (flat := re.sub(r"\[[^\[\]]*\]", "", inner)) != inner:
        inner = flat
    return [(part.partition(":")[0].strip(), "=" in part) for part in inner.split(",") if part.strip()]


def _call(use: Use) -> str:
    return f"{use.name}/{use.positional + len(use.keywords)}"


def _lets(guard: str, capabilities: Mapping[str, Any]) -> bool:
    name = guard.removeprefix("not ")
    return bool(capabilities[name]) != guard.startswith("not ")
