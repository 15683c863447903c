from collections.abc import Mapping
from typing import Any

import pytest

from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from workers.channel.messages import BackendError
from workers.engine_host.backends.options import settled
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.offer import Gpu, offered

EIGHT, TEN = (
    offered(capabilities(library), Gpu("H100", "9.0")).capabilities for library in (release_8(), release_10())
)


def settle(options: Mapping[str, Any], *, eight: bool = False) -> dict[str, Any]:
    return settled(options, EIGHT if eight else TEN)


def test_options_that_are_left_out_have_their_defaults() -> None:
    options = settle({"tf32": True})
    assert options["tf32"] is True
    assert (options["refit"], options["precision"], options["optimization_level"]) == ("all", "definition", 3)
    assert options["strip_weights"] is False
    assert "workspace_bytes" not in options  # TensorRT's own choice
    assert "weight_streaming_budget" not in options


def test_every_refused_option_is_named_at_once() -> None:
    with pytest.raises(BackendError) as error:
        settle({"optimization_level": 9, "tf32": "yes", "nonsense": 1, "precision": "fp16"})
    assert error.value.code == "bad_option"
    assert "optimization_level: 9 is greater than the maximum of 5" in error.value.detail
    assert "tf32: 'yes' is not of type 'boolean'" in error.value.detail
    assert "nonsense: unknown; known are " in error.value.detail
    assert "precision: " not in error.value.detail
    assert "GET /v1/workers" in error.value.detail


def test_an_option_of_other_releases_is_refused_with_the_reason() -> None:
    with pytest.raises(BackendError, match=r"strip_weights: unknown; .*: \w+ 8\.6\.1 has no weight stripping"):
        settle({"strip_weights": True}, eight=True)


@pytest.mark.parametrize("options", [{"strip_weights": True}, {"strip_weights": True, "refit": ["a.weight"]}])
def test_weights_may_be_stripped_where_a_refit_can_put_them_back(options: dict[str, Any]) -> None:
    assert settle(options)["strip_weights"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strip_weights": True, "refit": "none"}, 'refit "none" lets it put back nothing: use "all"'),
        ({"weight_streaming_budget": 0, "precision": "fp16"}, 'leave out precision "fp16"'),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendError, match=reason) as error:
        settle(options)
    assert error.value.code == "bad_option"


@pytest.mark.parametrize("options", [{"refit": "none"}, {"weight_streaming_budget": 0}, {"precision": "fp16"}])
def test_each_of_them_alone_is_accepted(options: dict[str, Any]) -> None:
    assert settle(options).items() >= options.items()
