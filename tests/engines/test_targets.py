"""Where an engine is made."""

from typing import Any

import pytest

from app.engines.targets import Target, choose_target, settle_target
from app.errors import Invalid
from app.fleet.backend_offer import BackendCapabilities, BackendOffer
from app.fleet.offers import BUILD_ONLY, Fleet, Member

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
LEVEL = {"type": "integer", "minimum": 0, "maximum": 5, "default": 3}
ONNXRUNTIME = Member("CPU", "onnxruntime", BackendOffer(version="1.32.0", makes=("cpu",), loads=("cpu",)))
GPU = {"level": LEVEL, "refit": {"enum": ["all", "none"], "default": "all"}}


def tensorrt(device: str = H100, version: str = "8.6.1", **capabilities: object) -> Member:
    platform = f"{version}/{device}"
    makes = (platform, f"{version}/ampere_plus")
    can = BackendCapabilities.model_validate(capabilities)
    return Member(device, "tensorrt", BackendOffer(version=version, makes=makes, loads=(platform,), capabilities=can))


def compiling() -> Member:
    """A worker without a GPU, which compiles for one."""
    options = {"level": LEVEL, "refit": {"enum": ["none"], "default": "none"}, "target": {"enum": ["SM80", "SM86"]}}
    said = BackendOffer(version="8.6.1", makes=("8.6.1/SM80",), capabilities=BackendCapabilities(options=options))
    return Member("CPU", "tensorrt", said)


def settled_in(fleet: Fleet, options: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    return settle_target(choose_target(fleet, "tensorrt", None), options)


class TestBackend:
    """Which backend makes the engine."""

    def test_is_onnxruntime_where_no_worker_offers_tensorrt(self) -> None:
        assert choose_target(Fleet((ONNXRUNTIME,)), None, None).backend == "onnxruntime"
        assert choose_target(Fleet(), None, None).backend == "onnxruntime"

    def test_is_tensorrt_where_a_worker_offers_it(self) -> None:
        assert choose_target(Fleet((ONNXRUNTIME, tensorrt())), None, None).backend == "tensorrt"

    def test_is_not_one_that_is_installed_but_cannot_be_used(self) -> None:
        broken = Member("CPU", "tensorrt", BackendOffer(version="8.6.1", unavailable="no GPU"))
        assert choose_target(Fleet((ONNXRUNTIME, broken)), None, None).backend == "onnxruntime"

    def test_is_accepted_though_nobody_offers_it_now(self) -> None:
        target = choose_target(Fleet(), "tensorrt", None)
        assert (target.backend, target.offer.versions, target.platform) == ("tensorrt", frozenset(), None)

    def test_is_accepted_if_only_the_fleet_knows_it(self) -> None:
        fleet = Fleet((Member("CPU", "openvino", BackendOffer(version="1")),))
        assert choose_target(fleet, "openvino", None).backend == "openvino"

    def test_is_refused_with_those_known_if_nobody_knows_it(self) -> None:
        with pytest.raises(Invalid, match="onnxruntime, tensorrt, tensorrt_rtx") as caught:
            choose_target(Fleet((ONNXRUNTIME,)), "tensort", None)
        assert caught.value.code == "backend_unknown"
        assert [fault.pointer for fault in caught.value.errors] == ["/backend"]


class TestDevice:
    """Where the engine is made."""

    FLEET = Fleet((ONNXRUNTIME, tensorrt(H100), tensorrt(A100)))

    def test_narrows_the_offer_to_what_it_has(self) -> None:
        target = choose_target(self.FLEET, "tensorrt", A100)
        assert target.offer.loads == (f"8.6.1/{A100}",)
        assert target.platform == f"8.6.1/{A100}"

    def test_decides_which_backend_is_the_default(self) -> None:
        assert choose_target(self.FLEET, None, H100).backend == "tensorrt"
        assert choose_target(self.FLEET, None, "CPU").backend == "onnxruntime"

    @pytest.mark.parametrize("device", ["NVIDIA H200", "CPU"])
    def test_is_refused_with_those_that_offer_the_backend(self, device: str) -> None:
        with pytest.raises(Invalid, match=f"offered by {H100}, {A100}") as caught:
            choose_target(self.FLEET, "tensorrt", device)
        assert caught.value.code == "device_unknown"
        assert [fault.pointer for fault in caught.value.errors] == ["/device"]

    def test_is_refused_with_the_reason_where_nobody_offers_the_backend(self) -> None:
        broken = Member("CPU", "tensorrt", BackendOffer(version="8.6.1", unavailable="The driver is too old."))
        with pytest.raises(Invalid, match=r"no worker alive offers 'tensorrt'\. The driver is too old\.") as caught:
            choose_target(Fleet((broken,)), "tensorrt", "CPU")
        assert caught.value.code == "device_unknown"

    def test_that_compiles_for_others_only_shares_the_queue_of_such_devices(self) -> None:
        target = choose_target(Fleet((compiling(), tensorrt(H100))), "tensorrt", "CPU")
        assert target.platform == BUILD_ONLY
        assert not target.runs


class TestMakers:
    """Which of several workers make the engine."""

    def test_are_any_where_all_take_the_options(self) -> None:
        target, settled = settled_in(Fleet((tensorrt(H100, options=GPU), tensorrt(A100, options=GPU))), {"level": 5})
        assert (target.platform, settled) == (None, {"level": 5})
        assert target.offer.loads == (f"8.6.1/{H100}", f"8.6.1/{A100}")

    def test_are_any_where_nobody_is_alive_to_tell(self) -> None:
        target, settled = settled_in(Fleet(), {"level": 5})
        assert (target.platform, target.runs, settled) == (None, True, {"level": 5})

    def test_are_those_that_run_what_they_compile(self) -> None:
        target, settled = settled_in(Fleet((compiling(), tensorrt(H100, options=GPU))), {})
        assert (target.platform, settled) == (f"8.6.1/{H100}", {})
        assert (target.runs, target.offer.makes[0]) == (True, f"8.6.1/{H100}")

    def test_settle_the_options_by_their_own_defaults(self) -> None:
        fleet = Fleet((compiling(), tensorrt(H100, options=GPU)))
        assert settled_in(fleet, {"refit": "all"})[1] == {}
        assert settled_in(fleet, {"refit": "none"})[1] == {"refit": "none"}
        assert settled_in(Fleet((compiling(),)), {"refit": "none"})[1] == {}

    def test_compile_for_others_where_only_such_take_the_options(self) -> None:
        fleet = Fleet((tensorrt(H100, options=GPU), compiling()))
        target, settled = settled_in(fleet, {"target": "SM86", "level": None})
        assert (target.platform, target.runs, settled) == (BUILD_ONLY, False, {"target": "SM86"})
        assert target.offer.platforms == {"8.6.1/SM80"}

    def test_are_any_where_all_compile_for_others(self) -> None:
        target, _ = settled_in(Fleet((compiling(), compiling())), {"target": "SM86"})
        assert (target.platform, target.runs) == (None, False)

    def test_are_those_of_the_version_that_has_the_option(self) -> None:
        fleet = Fleet((tensorrt(H100, options=GPU), tensorrt(A100, "10.0", options=GPU | {"streaming": {}})))
        assert settled_in(fleet, {"streaming": True})[0].platform == f"10.0/{A100}"

    def test_take_all_options_and_not_each_another_one(self) -> None:
        with pytest.raises(Invalid, match="No single worker") as caught:
            settled_in(Fleet((tensorrt(H100, options=GPU), compiling())), {"target": "SM86", "refit": "all"})
        assert caught.value.code == "invalid_options"
        faults = [(fault.pointer, fault.detail.partition(":")[0]) for fault in caught.value.errors]
        assert faults == [("/options/target", H100), ("/options/refit", "CPU")]

    def test_need_profiles_where_any_of_them_says_so(self) -> None:
        fleet = Fleet((tensorrt(H100, profiles="required for dynamic inputs"), tensorrt(A100)))
        assert settled_in(fleet, {})[0].needs_profiles
        assert not choose_target(fleet, "tensorrt", A100).needs_profiles
