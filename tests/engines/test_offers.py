from typing import Any

import pytest

from app.engines.offers import Fleet, Offer, choose_backend, fleet_offers, settle_options
from app.errors import Invalid
from tests.engines.workbench import OPTIONS, Workbench

FLEET: Fleet = {"onnxruntime": Offer(frozenset({"1.32.0"}), OPTIONS)}


def test_onnxruntime_is_the_default_where_no_worker_offers_tensorrt() -> None:
    assert choose_backend(FLEET, None) == "onnxruntime"
    assert choose_backend({}, None) == "onnxruntime"


def test_tensorrt_is_the_default_where_a_worker_offers_it() -> None:
    assert choose_backend({**FLEET, "tensorrt": Offer(frozenset({"8.6.1"}), {})}, None) == "tensorrt"


def test_a_known_backend_is_accepted_though_nobody_offers_it_now() -> None:
    assert choose_backend({}, "tensorrt") == "tensorrt"


def test_a_backend_that_only_the_fleet_knows_is_accepted() -> None:
    assert choose_backend({"openvino": Offer(frozenset({"1"}), {})}, "openvino") == "openvino"


def test_an_unknown_backend_is_refused_with_those_known() -> None:
    with pytest.raises(Invalid, match="onnxruntime, tensorrt, tensorrt_rtx") as caught:
        choose_backend(FLEET, "tensort")
    assert caught.value.code == "backend_unknown"
    assert [fault.pointer for fault in caught.value.errors] == ["/backend"]


def test_an_option_with_its_default_is_the_same_as_none() -> None:
    assert settle_options(FLEET, "onnxruntime", {"optimization": "extended"}) == {}
    assert settle_options(FLEET, "onnxruntime", {"optimization": None}) == {}


def test_an_option_with_another_value_is_kept() -> None:
    assert settle_options(FLEET, "onnxruntime", {"optimization": "none"}) == {"optimization": "none"}


@pytest.mark.parametrize(
    ("options", "pointer", "detail"),
    [
        ({"optimisation": "none"}, "/options/optimisation", "known are optimization, seed"),
        ({"a/b": 1}, "/options/a~1b", "known are optimization, seed"),
        ({"optimization": "O3"}, "/options/optimization", "one of extended, basic, none"),
        ({"optimization": 1}, "/options/optimization", "one of extended, basic, none"),
    ],
)
def test_a_wrong_option_is_refused_where_it_stands(options: dict[str, Any], pointer: str, detail: str) -> None:
    with pytest.raises(Invalid) as caught:
        settle_options(FLEET, "onnxruntime", options)
    [fault] = caught.value.errors
    assert fault.pointer == pointer
    assert detail in fault.detail


def test_an_option_without_listed_values_takes_any() -> None:
    assert settle_options(FLEET, "onnxruntime", {"seed": 7}) == {"seed": 7}


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        settle_options(FLEET, "onnxruntime", {"a": 1, "b": 2})
    assert [fault.pointer for fault in caught.value.errors] == ["/options/a", "/options/b"]


def test_a_backend_without_options_takes_none() -> None:
    with pytest.raises(Invalid, match="it takes none"):
        settle_options({"tensorrt": Offer(frozenset({"8.6.1"}), {})}, "tensorrt", {"fp16": True})


def test_options_of_a_backend_nobody_offers_are_left_to_the_worker() -> None:
    assert settle_options(FLEET, "tensorrt", {"fp16": True}) == {"fp16": True}


def test_the_fleet_offers_every_version_that_is_alive(bench: Workbench) -> None:
    bench.add_worker("onnxruntime", "1.31.0")
    bench.add_worker("onnxruntime", "1.32.0")
    bench.add_worker("tensorrt", "8.6.1")
    with bench.database.reading() as session:
        fleet = fleet_offers(session, bench.settings)
    assert fleet["onnxruntime"] == Offer(frozenset({"1.31.0", "1.32.0"}), OPTIONS)
    assert fleet["tensorrt"].versions == {"8.6.1"}
