"""What the adapter finds in a release, and what it therefore offers."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from app.fleet.option_schemas import fault_of
from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.capabilities import (
    Capabilities,
    capabilities,
    default_tactics,
    default_target,
    lacking,
    options_schema,
)
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.offer import Gpu, offered

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
RELEASES: dict[str, Any] = {"8.6": release_8(), "10.13": release_10(), "installed": trt}


def everywhere() -> list[Any]:
    """Each release, with a GPU and without."""
    return [
        pytest.param(capabilities(library), refit, id=f"{name}{'' if refit else ' without a GPU'}")
        for name, library in RELEASES.items()
        for refit in (True, False)
    ]


def test_release_8_has_what_came_before_strong_types() -> None:
    can = capabilities(release_8())
    assert can.explicit_batch
    assert can.fp16_flag
    assert can.version_compatible
    absent = (
        *(can.strongly_typed, can.strip_plan, can.refit_individual, can.serialization_config, can.include_refit),
        *(can.progress_monitor, can.int64, can.weight_streaming, can.async_refit),
    )
    assert not any(absent)
    assert (can.hardware_levels, can.targets) == (("AMPERE_PLUS",), ())


def test_release_10_has_both_the_fp16_flag_and_strong_types() -> None:
    can = capabilities(release_10())
    present = (
        *(can.explicit_batch, can.strongly_typed, can.fp16_flag, can.strip_plan, can.refit_individual, can.int64),
        *(can.serialization_config, can.progress_monitor),
        *(can.weight_streaming, can.version_compatible, can.async_refit),
    )
    assert all(present)
    assert not can.include_refit
    assert (can.hardware_levels, can.targets) == (("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"), ())


def test_a_refit_has_one_thread_where_it_would_keep_the_interpreters_lock_from_the_others() -> None:
    assert capabilities(release_8()).refit_threads == 1
    assert capabilities(release_10()).refit_threads == os.cpu_count()


def test_the_fleet_is_told_where_a_refit_is_asynchronous() -> None:
    compiling = release_10()
    compiling.ComputeCapability = SimpleNamespace(__members__={"SM80": 1})
    workers = ((release_8(), H100), (release_10(), H100), (compiling, None))
    told = [offered(capabilities(library), gpu).capabilities["async_refit"] for library, gpu in workers]
    assert told == [False, True, False]


@pytest.mark.parametrize("missing", ["refit_cuda_engine_async", "get_weights_location", "unset_named_weights"])
def test_a_refit_is_asynchronous_where_all_that_it_takes_is_there(missing: str) -> None:
    library = release_10()
    delattr(library.Refitter, missing)
    assert not capabilities(library).async_refit


@pytest.mark.skipif(NAME != "tensorrt_rtx", reason="tensorrt is installed")
def test_tensorrt_rtx_compiles_for_compute_capabilities_in_the_definitions_own_types() -> None:
    can = capabilities()
    assert (can.strongly_typed, can.fp16_flag, can.explicit_batch) == (True, False, False)
    assert {"SM80", "SM86", "SM89", "SM120"} <= set(can.targets)
    assert "CURRENT" not in can.targets
    assert can.hardware_levels == ()  # it takes them and ignores them
    assert default_target(can) == "SM80"


def test_the_first_target_is_the_default_where_sm80_is_none() -> None:
    library = release_10()
    library.ComputeCapability = SimpleNamespace(__members__={"NONE": 0, "SM100": 1, "SM120": 2})
    assert default_target(capabilities(library)) == "SM100"


def test_tactics_that_need_other_libraries_are_left_out_unless_asked_for() -> None:
    for library in (release_8(), release_10()):
        can = capabilities(library)
        assert default_tactics(can) == ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        allowed = options_schema(can, refit=True)["tactic_sources"]["items"]["enum"]
        assert {"cublas", "cublas_lt", "cudnn"} <= set(allowed)


@pytest.mark.parametrize(("can", "refit"), everywhere())
def test_every_option_is_a_json_schema_that_its_default_satisfies(can: Capabilities, *, refit: bool) -> None:
    for name, schema in options_schema(can, refit=refit).items():
        Draft202012Validator.check_schema(schema)
        if "default" in schema:
            assert Draft202012Validator(schema).is_valid(schema["default"]), name


@pytest.mark.parametrize(("can", "refit"), everywhere())
def test_an_option_or_value_that_only_others_have_is_refused_with_a_reason(can: Capabilities, *, refit: bool) -> None:
    here, lacks = options_schema(can, refit=refit), lacking(can, refit=refit)
    declared = {name: [schema] for name, schema in here.items()}
    for other in everywhere():
        for name, schema in options_schema(other.values[0], refit=other.values[1]).items():
            for value in values_of(schema):
                fault = fault_of(name, value, declared, lacks)
                if fault is not None:
                    reason = lacks.get(f"{name}={value}") or lacks.get(name)
                    assert reason, f"{name}={value}"
                    assert reason in fault.detail


def values_of(schema: dict[str, Any]) -> list[Any]:
    """Some values that a schema accepts, of each kind it has."""
    kinds = schema.get("anyOf", [schema])
    values = [value for kind in kinds for value in kind.get("enum", ())]
    values += [["a.weight"] for kind in kinds if kind.get("type") == "array" and "enum" not in kind["items"]]
    values += [False, True] if schema.get("type") == "boolean" else []
    values += [1 << 30] if schema.get("type") == "integer" and "maximum" not in schema else []
    assert values or "items" in schema or "maximum" in schema
    return values


@pytest.mark.parametrize(("can", "refit"), everywhere())
def test_nothing_that_is_accepted_has_a_reason_against_it(can: Capabilities, *, refit: bool) -> None:
    schemas = options_schema(can, refit=refit)
    for lack in lacking(can, refit=refit):
        name, _, value = lack.partition("=")
        if value:
            assert not Draft202012Validator(schemas[name]).is_valid(value), lack
        elif name != "refit":  # whose lists only are lacking
            assert name not in schemas


def test_lists_of_parameters_are_refused_where_all_or_none_are_refitted() -> None:
    eight, ten = (options_schema(capabilities(library), refit=True)["refit"] for library in (release_8(), release_10()))
    assert not Draft202012Validator(eight).is_valid(["a.weight"])
    assert Draft202012Validator(ten).is_valid(["a.weight"])
    assert not Draft202012Validator(ten).is_valid([])
    assert "all weights or none" in lacking(capabilities(release_8()), refit=True)["refit"]


@pytest.mark.parametrize(
    ("library", "dtype", "engine"),
    [
        (release_8(), "I64", np.int32),
        (release_8(), "F64", np.float32),
        (release_8(), "F16", np.float16),
        (release_10(), "I64", np.int64),
        (release_10(), "F64", np.float32),
        (release_10(), "BOOL", np.bool_),
    ],
)
def test_an_engine_keeps_weights_in_the_types_the_release_computes_with(
    library: SimpleNamespace, dtype: str, engine: type
) -> None:
    assert capabilities(library).engine_dtype(dtype) == np.dtype(engine)


@pytest.mark.parametrize(
    ("version", "faults"),
    [
        ("8.6.1", {"timing_cache"}),
        ("10.13.0.35", set()),
        ("11.3.0.99", {"refit"}),
        ("11.4.0.1", set()),
        ("1.7.1.116", set()),
    ],
)
def test_known_faults_of_a_release_are_told(version: str, faults: set[str]) -> None:
    can = capabilities(release_10(version))
    assert set(can.faults) == faults
    assert can.readable_timing_cache == ("timing_cache" not in faults)
    assert offered(can, H100).capabilities["notes"].items() >= can.faults.items()


def test_types_that_a_release_does_without_are_told() -> None:
    eight, ten = (offered(capabilities(library), H100).capabilities["notes"] for library in (release_8(), release_10()))
    assert "no BF16" in eight["BF16"]
    assert "quantized networks only" in eight["I8"]
    assert ten == {}


def test_the_types_of_the_installed_release_are_found() -> None:
    assert capabilities().bfloat16


@pytest.mark.skipif(NAME != "tensorrt_rtx", reason="tensorrt is installed")
@pytest.mark.parametrize(
    ("gpu", "there"),
    [(Gpu("T4", "7.5"), True), (Gpu("L4", "8.9"), True), (H100, False), (Gpu("B200", "10.0"), False)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_gpu_that_tensorrt_rtx_has_nothing_for_is_told_with_those_it_has(gpu: Gpu, *, there: bool) -> None:
    can = capabilities()
    if there:
        assert gpu.supported(can) is gpu
        return
    with pytest.raises(BackendError, match=gpu.name) as error:
        gpu.supported(can)
    assert error.value.code == "unsupported_gpu"
    assert "SM89" in error.value.detail


def test_tensorrt_itself_is_asked_for_any_gpu() -> None:
    assert H100.supported(capabilities(release_8())) is H100


def test_a_release_that_ignores_compatibility_with_other_versions_does_not_offer_it() -> None:
    library = release_10()
    library.ComputeCapability = SimpleNamespace(__members__={"CURRENT": 1, "SM80": 2})
    can = capabilities(library)
    assert "version_compatible" not in options_schema(can, refit=False)
    assert "version_compatible" in lacking(can, refit=False)


def test_a_gpu_loads_what_was_compiled_for_its_compute_capability_elsewhere() -> None:
    library = release_10("1.7")
    library.ComputeCapability = SimpleNamespace(__members__={"CURRENT": 1, "SM80": 2, "SM89": 3})
    here, there = offered(capabilities(library), Gpu("L4", "8.9")), offered(capabilities(library), None)
    assert set(here.loads) & set(there.makes) == {"1.7/SM89"}
    assert here.makes == ("1.7/L4",)


def test_what_others_of_a_kind_run_has_a_platform_that_only_those_load() -> None:
    can = capabilities(release_10("10.13"))
    h100, h200, a100, t4 = (
        offered(can, Gpu(name, capability))
        for name, capability in (("H100", "9.0"), ("H200", "9.0"), ("A100", "8.0"), ("T4", "7.5"))
    )
    assert h100.makes == ("10.13/H100", "10.13/ampere_plus", "10.13/compute_capability_9.0")
    assert h100.loads == h100.makes
    assert set(h100.loads) & set(h200.loads) == {"10.13/ampere_plus", "10.13/compute_capability_9.0"}
    assert set(h100.loads) & set(a100.loads) == {"10.13/ampere_plus"}
    assert not set(h100.loads) & set(t4.loads)


@pytest.mark.skipif(NAME != "tensorrt_rtx", reason="tensorrt is installed")
def test_without_a_gpu_it_compiles_for_every_target_and_loads_nothing() -> None:
    can = capabilities()
    here = offered(can, None)
    assert here.makes[0] == f"{trt.__version__}/SM80"
    assert sorted(here.makes) == sorted(f"{trt.__version__}/{target}" for target in can.targets)
    assert here.loads == ()
    assert [here.capabilities[what] for what in ("build", "refit", "run")] == [True, False, False]
    assert here.capabilities["options"]["refit"]["default"] == "none"


@pytest.mark.parametrize(("release", "opset"), [("8.6", 17), ("10.13", 20), ("installed", 20)])
def test_definitions_are_normalised_for_the_opset_that_a_releases_parser_knows(release: str, opset: int) -> None:
    assert capabilities(RELEASES[release]).parser.opset == opset
