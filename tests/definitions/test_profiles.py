from typing import Any

import pytest

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range, example_profile, opt_shapes, parse_profiles, settle_shapes, to_json
from app.errors import Invalid

IDS = InputSpec("ids", "I64", ("batch", "sequence"), high=100)
MASK = InputSpec("mask", "I64", ("batch", "sequence"))
IMAGE = InputSpec("x", "F32", ("n", 3, "x.2", "x.3"))
FIXED = InputSpec("scale", "F32", (4,))
SIZES = {"min": [1, 1], "opt": [4, 16], "max": [8, 128]}


def pointers(profiles: list[Any], *inputs: InputSpec) -> list[str]:
    with pytest.raises(Invalid) as raised:
        parse_profiles(profiles, inputs)
    assert raised.value.code == "invalid_profiles"
    return [error.pointer for error in raised.value.errors]


def test_completes_inputs_whose_symbols_are_settled_and_fixed_ones() -> None:
    (profile,) = parse_profiles([{"ids": SIZES}], [IDS, MASK, FIXED])
    assert profile["mask"] == profile["ids"] == Range((1, 1), (4, 16), (8, 128))
    assert profile["scale"] == Range((4,), (4,), (4,))
    assert list(profile) == ["ids", "mask", "scale"]


def test_json_of_profiles_reads_back_as_the_same_profiles() -> None:
    profiles = parse_profiles([{"ids": SIZES}, {"mask": SIZES}], [IDS, MASK])
    assert parse_profiles(to_json(profiles), [IDS, MASK]) == profiles


def test_an_example_has_every_dynamic_input_and_fits_the_definition() -> None:
    inputs = [IDS, MASK, IMAGE, FIXED]
    example = example_profile(inputs)
    assert example["ids"] == {"min": [1, 8], "opt": [2, 16], "max": [8, 64]}
    assert example["x"] == {"min": [1, 3, 32, 32], "opt": [2, 3, 64, 64], "max": [8, 3, 256, 256]}
    assert list(example) == ["ids", "mask", "x"]
    assert parse_profiles([example], inputs)[0]["scale"] == Range((4,), (4,), (4,))
    assert example_profile([FIXED]) == {}


def test_a_minimum_may_be_empty_for_several_inputs_at_once() -> None:
    inputs = [InputSpec(name, "F32", ("batch", "past", 8)) for name in ("key", "value")]
    sizes = {"min": [1, 0, 8], "opt": [1, 4, 8], "max": [2, 64, 8]}
    (profile,) = parse_profiles([{"key": sizes}], inputs)
    assert profile["value"] == Range((1, 0, 8), (1, 4, 8), (2, 64, 8))
    assert settle_shapes({"key": [1, 0, 8]}, inputs, [profile])["value"] == (1, 0, 8)


def test_reports_every_fault_at_once() -> None:
    bad = [{"ids": {**SIZES, "opt": [9, 16]}, "nothing": SIZES}, {"mask": {**SIZES, "max": [8]}}]
    assert pointers(bad, IDS, MASK) == ["/profiles/0/ids", "/profiles/0/nothing", "/profiles/1/mask/max"]


@pytest.mark.parametrize(
    ("sizes", "pointer"),
    [
        ({"min": [1, 1], "opt": [4, 16]}, "/profiles/0/ids"),
        ({**SIZES, "best": [1, 1]}, "/profiles/0/ids"),
        ({**SIZES, "min": [-1, 1]}, "/profiles/0/ids/min/0"),
        ({"min": [0, 1], "opt": [0, 1], "max": [1, 1]}, "/profiles/0/ids/opt/0"),
        ({**SIZES, "min": [True, 1]}, "/profiles/0/ids/min"),
        ({**SIZES, "max": [2**31, 128]}, "/profiles/0/ids/max/0"),
        ({**SIZES, "opt": "big"}, "/profiles/0/ids/opt"),
        ([1, 2], "/profiles/0/ids"),
    ],
)
def test_refuses_sizes_that_are_no_shapes(sizes: object, pointer: str) -> None:
    assert pointers([{"ids": sizes}], IDS) == [pointer]


def test_refuses_another_size_for_a_fixed_dimension() -> None:
    sizes = {"min": [1, 1, 32, 32], "opt": [1, 3, 64, 64], "max": [4, 3, 64, 64]}
    assert pointers([{"x": sizes}], IMAGE) == ["/profiles/0/x/min/1"]


def test_refuses_two_sizes_for_one_symbol() -> None:
    assert pointers([{"ids": SIZES, "mask": {**SIZES, "max": [8, 64]}}], IDS, MASK) == ["/profiles/0/mask"]


def test_refuses_a_profile_that_leaves_a_dimension_open() -> None:
    assert pointers([{"ids": SIZES}], IDS, IMAGE) == ["/profiles/0"]


def test_refuses_more_profiles_than_the_limit() -> None:
    assert pointers([{"ids": SIZES}] * 17, IDS) == ["/profiles"]


def test_escapes_names_in_pointers() -> None:
    assert pointers([{"a/b~c": SIZES}], IDS)[0] == "/profiles/0/a~1b~0c"


def test_default_shapes_suit_text_and_images() -> None:
    assert opt_shapes([IDS, MASK, IMAGE, FIXED], []) == {
        "ids": (2, 16),
        "mask": (2, 16),
        "x": (2, 3, 64, 64),
        "scale": (4,),
    }


def test_shapes_of_the_first_profile_win_over_defaults() -> None:
    profiles = parse_profiles([{"ids": SIZES}], [IDS])
    assert opt_shapes([IDS], profiles) == {"ids": (4, 16)}


def shape_pointers(given: dict[str, Any], *inputs: InputSpec, profiles: list[Any] | None = None) -> list[str]:
    with pytest.raises(Invalid) as raised:
        settle_shapes(given, inputs, parse_profiles(profiles or [], inputs))
    assert raised.value.code == "invalid_shapes"
    return [error.pointer for error in raised.value.errors]


def test_shapes_not_given_follow_from_the_symbols_of_those_that_are() -> None:
    inputs = [IDS, MASK, FIXED]
    assert settle_shapes({"ids": [3, 7]}, inputs, ()) == {"ids": (3, 7), "mask": (3, 7), "scale": (4,)}
    assert settle_shapes({}, inputs, ()) == opt_shapes(inputs, ())


def test_shapes_not_given_are_those_of_the_first_profile_that_takes_the_given_ones() -> None:
    inputs = [IDS, InputSpec("position", "I64", ("rank",))]
    small = {"ids": SIZES, "position": {"min": [1], "opt": [2], "max": [3]}}
    large = {
        "ids": {"min": [8, 1], "opt": [16, 16], "max": [64, 128]},
        "position": {"min": [1], "opt": [9], "max": [9]},
    }
    profiles = parse_profiles([small, large], inputs)
    assert settle_shapes({}, inputs, profiles) == {"ids": (4, 16), "position": (2,)}
    assert settle_shapes({"ids": [32, 1]}, inputs, profiles) == {"ids": (32, 1), "position": (9,)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"nothing": [1], "ids": [1]}, ["/shapes/nothing", "/shapes/ids"]),
        ({"ids": [-1, 1]}, ["/shapes/ids/0"]),
        ({"ids": [1, True]}, ["/shapes/ids"]),
        ({"scale": [5]}, ["/shapes/scale/0"]),
        ({"ids": [2, 3], "mask": [2, 4]}, ["/shapes/mask/1"]),
    ],
)
def test_refuses_shapes_that_the_inputs_cannot_have(given: dict[str, Any], expected: list[str]) -> None:
    assert shape_pointers(given, IDS, MASK, FIXED) == expected


def test_refuses_shapes_that_fit_no_profile() -> None:
    other = {"min": [16, 1], "opt": [16, 1], "max": [16, 1]}
    assert shape_pointers({"ids": [9, 1]}, IDS, profiles=[{"ids": SIZES}]) == ["/shapes/ids"]
    assert shape_pointers({"ids": [9, 1]}, IDS, profiles=[{"ids": SIZES}, {"ids": other}]) == ["/shapes/ids"] * 2


def test_an_axis_that_may_be_empty_is_said_to_be_so_in_min_alone() -> None:
    inputs = (InputSpec("past", "F32", ("length", 8)),)
    given = [{"past": {"min": [0, 8], "opt": [0, 8], "max": [4, 8]}}]
    with pytest.raises(Invalid) as caught:
        parse_profiles(given, inputs)
    (fault,) = caught.value.errors
    assert fault.pointer.endswith("/past/opt/0")
    assert "0 may stand in min alone" in fault.detail
