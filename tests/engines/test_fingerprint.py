from typing import Any

import pytest

from app.engines.fingerprint import fingerprint, recipe

BUILD: dict[str, Any] = {
    "definition_digest": "sha256:" + "d1" * 32,
    "weights_digest": "sha256:" + "e2" * 32,
    "binding_digest": "sha256:" + "b3" * 32,
    "backend": "onnxruntime",
    "profiles": [{"x": {"min": [1, 8], "opt": [2, 8], "max": [4, 8]}}],
    "options": {"optimization": "basic"},
}
RECIPE: dict[str, Any] = {
    "definition_digest": BUILD["definition_digest"],
    "backend": "onnxruntime",
    "profiles": BUILD["profiles"],
    "options": BUILD["options"],
}


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("definition_digest", "sha256:" + "00" * 32),
        ("weights_digest", "sha256:" + "00" * 32),
        ("binding_digest", "sha256:" + "00" * 32),
        ("backend", "tensorrt"),
        ("profiles", [{"x": {"min": [1, 8], "opt": [3, 8], "max": [4, 8]}}]),
        ("options", {"optimization": "none"}),
    ],
)
def test_every_field_changes_the_fingerprint(field: str, other: object) -> None:
    assert fingerprint(**BUILD) != fingerprint(**{**BUILD, field: other})


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("definition_digest", "sha256:" + "00" * 32),
        ("backend", "tensorrt"),
        ("profiles", []),
        ("options", {}),
    ],
)
def test_every_field_changes_the_recipe(field: str, other: object) -> None:
    assert recipe(**RECIPE) != recipe(**{**RECIPE, field: other})


def test_a_digest_names_its_algorithm() -> None:
    name, _, value = fingerprint(**BUILD).partition(":")
    assert name == "sha256"
    assert len(bytes.fromhex(value)) == 32


def test_the_order_of_keys_does_not_matter() -> None:
    profiles = [{"x": {"max": [4, 8], "opt": [2, 8], "min": [1, 8]}}]
    assert fingerprint(**{**BUILD, "profiles": profiles}) == fingerprint(**BUILD)


def test_the_order_of_profiles_matters_because_an_engine_numbers_them() -> None:
    one, other = ({"x": {"min": [size], "opt": [size], "max": [size]}} for size in (1, 2))
    assert fingerprint(**{**BUILD, "profiles": [one, other]}) != fingerprint(**{**BUILD, "profiles": [other, one]})


def test_null_counts_as_left_out() -> None:
    options = {"optimization": "basic", "workspace": None}
    assert fingerprint(**{**BUILD, "options": options}) == fingerprint(**BUILD)


def test_a_whole_number_is_the_same_with_and_without_a_point() -> None:
    assert fingerprint(**{**BUILD, "options": {"level": 3}}) == fingerprint(**{**BUILD, "options": {"level": 3.0}})


def test_true_is_not_one() -> None:
    assert fingerprint(**{**BUILD, "options": {"a": True}}) != fingerprint(**{**BUILD, "options": {"a": 1}})


def test_a_tuple_is_the_same_as_a_list() -> None:
    assert fingerprint(**{**BUILD, "profiles": tuple(BUILD["profiles"])}) == fingerprint(**BUILD)


def test_the_fingerprint_is_the_one_stored_by_earlier_releases() -> None:
    """Engines in existing databases are found by it: a change here makes every one of them look new."""
    assert fingerprint(**BUILD) == "sha256:199a0a08aecc3f7407304c75fa62f132a3350e6730d8f85fdd0add7290c426ff"


def test_the_recipe_of_an_engine_without_rules_is_the_one_stored_by_earlier_releases() -> None:
    """Parents in existing databases are found by it."""
    assert recipe(**RECIPE) == "sha256:b0e3f6858a039952ebfc50978aafe8d1a7d484754f3902b3a027bbd46a1f6555"
