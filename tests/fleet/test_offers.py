from typing import Any

import pytest

from app.database import Database
from app.engines.targets import choose_target, settle_target
from app.errors import Invalid
from app.fleet.backend_offer import BackendCapabilities, BackendOffer
from app.fleet.offers import Fleet, Member, fleet_offers, settle_options
from app.settings import Settings
from tests.engines.workbench import OPTIONS, Workbench

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
LEVEL = {"type": "integer", "minimum": 0, "maximum": 5, "default": 3}
FLAG = {"type": "boolean"}
NOT_FAST_AT_3 = {
    "when": {"required": ["fast"], "properties": {"fast": {"const": True}, "level": {"const": 3}}},
    "reason": "fast needs another level",
}
ONNXRUNTIME = Member("CPU", "onnxruntime", BackendOffer(version="1.32.0", makes=("cpu",), loads=("cpu",)))


def tensorrt(device: str = H100, version: str = "8.6.1", **capabilities: object) -> Member:
    platform = f"{version}/{device}"
    makes = (platform, f"{version}/ampere_plus")
    can = BackendCapabilities.model_validate(capabilities)
    return Member(device, "tensorrt", BackendOffer(version=version, makes=makes, loads=(platform,), capabilities=can))


def offering(**options: object) -> Fleet:
    return Fleet((tensorrt(options=options),))


def settle(fleet: Fleet, options: dict[str, Any]) -> dict[str, Any]:
    return settle_options("tensorrt", fleet.offer("tensorrt"), options)


def refused(fleet: Fleet, options: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        settle(fleet, options)
    assert caught.value.code == "invalid_options"
    return {fault.pointer: fault.detail for fault in caught.value.errors}


class TestOptions:
    """What may be asked of a build."""

    def test_with_their_default_are_the_same_as_none(self) -> None:
        assert settle(offering(level=LEVEL), {"level": 3}) == {}
        assert settle(offering(level=LEVEL), {"level": None}) == {}

    def test_with_another_value_are_kept(self) -> None:
        assert settle(offering(level=LEVEL), {"level": 5}) == {"level": 5}

    def test_true_is_not_one(self) -> None:
        schema = {"type": ["integer", "boolean"], "default": 1}
        assert settle(offering(level=schema), {"level": True}) == {"level": True}

    def test_that_exclude_each_other_are_refused_with_the_reason(self) -> None:
        fleet = Fleet((tensorrt(options={"level": LEVEL, "fast": FLAG}, conflicts=[NOT_FAST_AT_3]),))
        assert refused(fleet, {"fast": True}) == {"/options": "fast needs another level"}  # 3 is the default
        assert refused(fleet, {"fast": True, "level": None}) == {"/options": "fast needs another level"}
        assert settle(fleet, {"fast": True, "level": 5}) == {"fast": True, "level": 5}
        assert settle(fleet, {"fast": False}) == {"fast": False}

    def test_that_exclude_each_other_for_one_worker_only_are_for_the_other(self) -> None:
        options = {"level": LEVEL, "fast": FLAG}
        strict, lax = tensorrt(options=options, conflicts=[NOT_FAST_AT_3]), tensorrt(A100, options=options)
        fleet = Fleet((strict, lax))
        target = choose_target(fleet, "tensorrt", None)
        assert settle_target(target, {"fast": True})[0].members == (lax,)
        assert settle_target(target, {"fast": True, "level": 5})[0].members == (strict, lax)

    @pytest.mark.parametrize(
        ("options", "pointer", "detail"),
        [
            ({"levle": 1}, "/options/levle", "known are level, refit"),
            ({"a/b": 1}, "/options/a~1b", "known are level, refit"),
            ({"levle": None}, "/options/levle", "known are level, refit"),
            ({"level": 6}, "/options/level", "greater than the maximum of 5"),
            ({"level": True}, "/options/level", "not of type 'integer'"),
            ({"refit": ["a", 1]}, "/options/refit/1", "not of type 'string'"),
            ({"refit": ["a", "(b"]}, "/options/refit/1", "not a regular expression"),
        ],
    )
    def test_that_are_wrong_are_refused_where_they_are(
        self, options: dict[str, Any], pointer: str, detail: str
    ) -> None:
        fleet = offering(level=LEVEL, refit={"type": "array", "items": {"type": "string"}})
        faults = refused(fleet, options)
        assert list(faults) == [pointer]
        assert detail in faults[pointer]

    def test_that_are_long_are_not_repeated_in_full(self) -> None:
        detail = refused(offering(level=LEVEL), {"level": "x" * 100_000})["/options/level"]
        assert detail.endswith("is not of type 'integer'")
        assert len(detail) < 400

    def test_that_are_wrong_are_all_named_at_once(self) -> None:
        assert list(refused(offering(), {"a": 1, "b": 2})) == ["/options/a", "/options/b"]

    def test_of_a_backend_without_any_are_refused(self) -> None:
        assert refused(offering(), {"fp16": True}) == {"/options/fp16": "it takes none"}

    def test_are_refused_with_the_reason_why_they_are_lacking(self) -> None:
        lacks = {"precision=bf16": "bf16 came with 9.0", "streaming": "streaming came with 10.0"}
        precision = {"enum": ["definition", "fp16"], "default": "definition"}
        fleet = Fleet((tensorrt(options={"precision": precision}, lacks=lacks),))
        faults = refused(fleet, {"precision": "bf16", "streaming": True})
        assert faults["/options/precision"].endswith("bf16 came with 9.0")
        assert faults["/options/streaming"].endswith("streaming came with 10.0")

    def test_are_accepted_if_any_worker_accepts_them(self) -> None:
        old = tensorrt(H100, options={"precision": {"enum": ["fp16"]}}, lacks={"streaming": "came with 10.0"})
        new = tensorrt(A100, "10.0", options={"precision": {"enum": ["fp16", "bf16"]}, "streaming": {}})
        options = {"precision": "bf16", "streaming": True}
        assert settle(Fleet((old, new)), options) == options
        assert list(refused(Fleet((old, new)).on(H100), options)) == ["/options/precision", "/options/streaming"]

    def test_whose_default_depends_on_the_worker_are_kept(self) -> None:
        fleet = Fleet((tensorrt(H100, options={"tf32": {"default": True}}), tensorrt(A100, options={"tf32": {}})))
        assert settle(fleet, {"tf32": True}) == {"tf32": True}

    def test_of_a_backend_nobody_offers_are_left_to_the_worker(self) -> None:
        assert settle(Fleet((ONNXRUNTIME,)), {"fp16": True, "other": None}) == {"fp16": True}

    def test_of_a_backend_nobody_offers_must_have_patterns_that_can_be_used(self) -> None:
        assert list(refused(Fleet(), {"refit": ["(b"]})) == ["/options/refit/0"]

    @pytest.mark.parametrize(
        "schema", [{"$ref": "https://example.com/level.json"}, {"$ref": "#/$defs/nothing"}, {"type": "nonsense"}]
    )
    def test_whose_schema_cannot_be_used_are_refused_and_nothing_is_fetched(
        self, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("urllib.request.urlopen", lambda *_args, **_options: pytest.fail("went to the network"))
        assert "cannot be used" in refused(offering(level=schema), {"level": 1})["/options/level"]

    def test_may_refer_to_other_parts_of_their_schema(self) -> None:
        schema = {"$ref": "#/$defs/level", "$defs": {"level": LEVEL}}
        assert settle(offering(level=schema), {"level": 1}) == {"level": 1}
        assert "maximum" in refused(offering(level=schema), {"level": 6})["/options/level"]


def test_the_fleet_offers_every_version_and_platform_that_is_alive(database: Database, settings: Settings) -> None:
    bench = Workbench(database, settings)
    bench.add_worker("onnxruntime", "1.31.0")
    bench.add_worker("onnxruntime", "1.32.0")
    bench.add_worker("tensorrt", "8.6.1", device=H100, platforms=["8.6.1/H100", "8.6.1/ampere_plus"])
    bench.add_idle_worker("tensorrt_rtx", "no library")
    with bench.database.reading() as session:
        fleet = fleet_offers(session, bench.settings)
    assert fleet.backends == {"onnxruntime", "tensorrt"}
    onnxruntime = fleet.offer("onnxruntime")
    assert onnxruntime.versions == {"1.31.0", "1.32.0"}
    assert {name: [*schemas] for name, schemas in onnxruntime.options.items()} == {
        name: [schema] for name, schema in OPTIONS.items()
    }
    assert fleet.offer("tensorrt").loads == ("8.6.1/H100", "8.6.1/ampere_plus")
    assert fleet.devices("tensorrt") == (H100,)
    assert fleet.offer("tensorrt_rtx").versions == frozenset()
    assert fleet.offer("tensorrt_rtx").unavailable == ("no library",)
