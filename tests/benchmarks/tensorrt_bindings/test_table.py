"""The adapter asks of each release only what its Python bindings have, as the committed table says, and the table is
what the bindings themselves say."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tensorrt_bindings.faults import faults, idle_guards
from benchmarks.tensorrt_bindings.look import looked_at
from benchmarks.tensorrt_bindings.spans import within
from benchmarks.tensorrt_bindings.table import table, written
from benchmarks.tensorrt_bindings.uses import ADAPTER, UNTYPED, Use, adapter_uses
from benchmarks.tensorrt_bindings.wheels import RELEASES, fetched

STUBS = Path(pytest.__file__).parents[1] / "tensorrt_bindings" / "tensorrt.pyi"
TABLE = written()
LABELS = [one["release"] for one in TABLE["releases"]]


@pytest.fixture(scope="module")
def uses() -> tuple[Use, ...]:
    if not STUBS.exists():
        pytest.skip("tensorrt-stubs are not installed: see the Makefile")
    return adapter_uses()


@pytest.mark.slow
def test_the_adapter_uses_of_each_release_only_what_it_has(uses: tuple[Use, ...]) -> None:
    assert len(uses) > 100
    assert faults(TABLE, uses) == []


@pytest.mark.slow
def test_no_guard_and_no_listed_use_is_left_over_from_an_adapter_of_before(uses: tuple[Use, ...]) -> None:
    source = "".join(path.read_text() for path in Path(__file__).parents[3].joinpath(ADAPTER).glob("*.py"))
    assert idle_guards(uses) == set()
    named = [use for use in UNTYPED if use.owner]  # the others are numpy's names of dtypes
    assert [use for use in named if use.member.lower() not in source.lower()] == []


@pytest.mark.slow
def test_the_bindings_of_each_release_are_as_the_table_says(uses: tuple[Use, ...]) -> None:
    folders = fetched(RELEASES)
    if not folders:
        pytest.skip("PyPI cannot be reached, and no bindings were fetched before")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to make stand-ins for TensorRT's libraries with")
    looks = looked_at(folders)
    found = table(looks, uses)
    here = [one["release"] for one in found["releases"]]
    assert found["releases"] == [one for one in TABLE["releases"] if one["release"] in here]
    for kind in ("members", "callbacks"):
        assert spread(found[kind], here) == spread(TABLE[kind], LABELS, here)
    for name, overloads in found["signatures"].items():
        assert spread(overloads, here) == spread(TABLE["signatures"][name], LABELS, here), name


def spread(spans: dict[str, str], releases: list[str], of: list[str] | None = None) -> dict[str, set[str]]:
    """Which of the releases have each name, without names that none has."""
    found = {name: within(text, releases) & set(of or releases) for name, text in spans.items()}
    return {name: having for name, having in found.items() if having}


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (Use("Refitter", "no_such_method"), "8.6.1 has no Refitter.no_such_method"),
        (
            Use("IBuilderConfig", "set_device_type", 2),
            "8.6.1 does not take IBuilderConfig.set_device_type with 2 arguments",
        ),
        (Use("Refitter", "set_named_weights", 4), "8.6.1 does not take Refitter.set_named_weights with 4 arguments"),
        (Use("ICudaEngine", "get_device_memory_size_for_profile_v2"), "10.0.1 has no"),
        (Use("ITimingCache", "combine", 1, ("ignore",)), "does not take ITimingCache.combine with 1 arguments ['ig"),
        (Use("BuilderFlag", "INT8"), "11.4.0.106 has no BuilderFlag.INT8"),
        (Use("IOutputAllocator", "shape_is_known"), "has no IOutputAllocator.shape_is_known"),
    ],
    ids=lambda value: value.name if isinstance(value, Use) else "",
)
def test_a_use_that_a_release_lacks_is_told(use: Use, told: str) -> None:
    assert any(told in line for line in faults(TABLE, [use]))


@pytest.mark.parametrize(
    "use",
    [
        Use("Refitter", "set_named_weights", 3),  # only 8.6 does not take a location, and its refits are not told any
        Use("BuilderFlag", "FP16"),
        Use("IBuilderConfig", "set_compute_capability", 2),
        Use("Builder", "create_network", 0),
        Use("IBuilderConfig", "set_timing_cache", 1, ("ignore_mismatch",)),
    ],
    ids=lambda use: use.name,
)
def test_a_use_that_a_capability_guards_or_every_release_takes_is_none(use: Use) -> None:
    assert faults(TABLE, [use]) == []


def test_a_capability_that_is_found_where_its_names_are_not_is_told() -> None:
    wrong: Any = {**TABLE, "releases": [dict(one) for one in TABLE["releases"]]}
    wrong["releases"][0]["capabilities"] = TABLE["releases"][0]["capabilities"] | {"progress_monitor": True}
    assert faults(wrong, [Use("IBuilderConfig", "progress_monitor")]) == [
        "8.6.1 has no IBuilderConfig.progress_monitor"
    ]
