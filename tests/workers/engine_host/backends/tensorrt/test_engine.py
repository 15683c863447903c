"""What an engine on the device is given when parameters change; the device is a stand-in."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.workers.engine_host.backends.tensorrt.compiled_graphs import definition_of
from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from tests.workers.networks import Network, bound, checkpoint, convolution, perceptron
from workers.channel.messages import BackendError, ParameterSource, Residency, TensorFile
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.backends.tensorrt import engine as module
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine
from workers.engine_host.backends.tensorrt.layout import lay_out
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.refitting import KnownWeights
from workers.engine_host.backends.tensorrt.weight_values import Named
from workers.engine_host.resident import ResidentEngines
from workers.engine_host.tensors import Array, ParameterFiles

Sources = tuple[ParameterSource, ...]


class Device:
    """Stands for a deserialized engine with these replaceable weights; `set` are those it was given last.

    `refits` has the names that each refit was given.
    """

    def __init__(self, weights: Iterable[str]) -> None:
        self.weights = frozenset(weights)
        self.set: dict[str, Array] = {}
        self.combined: list[str] = []
        self.refits: list[set[str]] = []

    def refit(
        self,
        _engine: object,
        weights: Iterable[Named],
        _can: object,
        _log: object,
        known: KnownWeights,
    ) -> set[str]:
        self.set = {name: np.array(array) for name, array, _ in (*weights, *known.named(self.combined))}
        self.refits.append(set(self.set))
        return self.refits[-1]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device(["0.weight", "0.bias", "1.weight", "1.bias"])
    monkeypatch.setattr(module, "refit", device.refit)
    monkeypatch.setattr(module, "refittable_weights", lambda _engine, _log: device.weights)
    return device


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


def versions(network: Network, folder: Path) -> tuple[dict[str, TensorFile], dict[str, TensorFile]]:
    first, second = (checkpoint(folder / f"{seed}.safetensors", network.weights(seed)) for seed in (1, 2))
    return first, second


def loaded(
    network: Network,
    held: Sources,
    library: Any = None,  # noqa: ANN401 - a module
    *,
    stripped: bool = False,
    **members: Any,  # noqa: ANN401 - of the `trt.ICudaEngine` that is stood for
) -> TensorrtEngine:
    layout = lay_out(definition_of(network))
    can = capabilities(library or release_10())
    contents = {one.name: one.content for one in held}
    device: Any = SimpleNamespace(refittable=True, num_layers=1, **members)
    return TensorrtEngine(device, layout, contents, can, Log(), weight_bytes=1, stripped=stripped)


def give(engine: TensorrtEngine, sources: Sources, folder: Path) -> int:
    watch = Stopwatch(lambda _message: None)
    return engine.set_parameters(sources, ParameterFiles(folder / "made"), watch, lambda _done, _total: None)


def test_only_what_changed_is_set(network: Network, device: Device, tmp_path: Path) -> None:
    first, second = versions(network, tmp_path)
    engine = loaded(network, bound(network, first))

    assert give(engine, bound(network, first | {"1.bias": second["1.bias"]}), tmp_path) == 1

    assert set(device.set) == {"1.bias"}
    np.testing.assert_array_equal(device.set["1.bias"], network.weights(2)["1.bias"])


def test_nothing_is_set_where_nothing_changed(network: Network, device: Device, tmp_path: Path) -> None:
    first, _ = versions(network, tmp_path)
    assert give(loaded(network, bound(network, first)), bound(network, first), tmp_path) == 0
    assert device.set == {}


def test_an_engine_remembers_what_it_was_given(network: Network, device: Device, tmp_path: Path) -> None:
    first, second = (bound(network, one) for one in versions(network, tmp_path))
    engine = loaded(network, first)
    assert [give(engine, one, tmp_path) for one in (second, second, first)] == [4, 0, 4]
    np.testing.assert_array_equal(device.set["0.weight"], network.weights(1)["0.weight"])


def test_weights_that_tensorrt_combined_are_set_from_the_same_version(
    network: Network, device: Device, tmp_path: Path
) -> None:
    first, second = versions(network, tmp_path)
    device.combined = ["0.bias", "a constant of the graph"]
    changed = bound(network, first | {"0.weight": second["0.weight"]})

    assert give(loaded(network, bound(network, first)), changed, tmp_path) == 2

    np.testing.assert_array_equal(device.set["0.bias"], network.weights(1)["0.bias"])


def test_an_engine_comes_to_rest_before_it_is_refitted(network: Network, device: Device, tmp_path: Path) -> None:
    first, second = versions(network, tmp_path)
    engine = loaded(network, bound(network, first))
    seen: list[int] = []
    running = SimpleNamespace(wait=lambda: seen.append(len(device.set)))
    engine.__dict__["_execution"] = running  # as if it had been run

    give(engine, bound(network, second), tmp_path)

    assert seen == [0]
    assert len(device.set) == 4


@pytest.mark.usefixtures("device")
def test_the_buffers_of_runs_count_as_memory_of_the_engine_but_not_as_tensorrts_own(
    network: Network, tmp_path: Path
) -> None:
    engine = loaded(network, bound(network, versions(network, tmp_path)[0]), device_memory_size_v2=100)
    sizes = [engine.nbytes]
    for nbytes in (10, 30):
        engine.__dict__["_execution"] = SimpleNamespace(nbytes=nbytes)  # as if it had been run
        sizes.append(engine.nbytes)
    assert sizes == [101, 111, 131]
    assert engine.facts["run_bytes"] == 100


@pytest.mark.usefixtures("device")
def test_an_engine_that_grew_beyond_the_limit_goes_when_another_one_comes(network: Network, tmp_path: Path) -> None:
    resident, sources = ResidentEngines(limit=250), bound(network, versions(network, tmp_path)[0])
    grown, other = (loaded(network, sources, device_memory_size_v2=100) for _ in range(2))
    resident.put("grown", grown, "plan")
    grown.__dict__["_execution"] = SimpleNamespace(nbytes=1000)
    assert resident.residency.nbytes == 1101
    assert resident.get("grown")  # whoever works with it goes on

    resident.put("other", other, "plan")

    assert resident.residency == Residency(1, 101)
    assert resident.get("other")


def test_a_parameter_the_compiled_form_has_not_kept_is_refused_only_if_it_changes(
    network: Network, device: Device, tmp_path: Path
) -> None:
    first, second = versions(network, tmp_path)
    device.weights -= {"0.bias"}
    engine = loaded(network, bound(network, first))

    assert give(engine, bound(network, second | {"0.bias": first["0.bias"]}), tmp_path) == 3
    with pytest.raises(BackendError, match=r"has not kept 0\.bias as weights") as error:
        give(engine, bound(network, second), tmp_path)

    assert error.value.code == "not_refittable"
    assert "Build an engine for these weights" in error.value.detail


def test_a_stripped_engine_is_given_everything_it_can_take_once(
    network: Network, device: Device, tmp_path: Path
) -> None:
    first, second = versions(network, tmp_path)
    device.weights -= {"0.bias"}  # compiled in, so not stripped
    engine = loaded(network, bound(network, first), stripped=True)

    assert give(engine, bound(network, first), tmp_path) == 3
    assert set(device.set) == {"0.weight", "1.weight", "1.bias"}
    assert give(engine, bound(network, first | {"1.bias": second["1.bias"]}), tmp_path) == 1


def test_an_engine_without_its_weights_counts_what_it_is_given(
    network: Network, device: Device, tmp_path: Path
) -> None:
    first, _ = versions(network, tmp_path)
    device.weights -= {"0.bias"}
    sizes = [
        loaded(network, bound(network, first), stripped=stripped, device_memory_size_v2=0).nbytes
        for stripped in (False, True)
    ]
    assert sizes[1] - sizes[0] == sum(network.weights(1)[name].nbytes for name in device.weights)


def test_computed_values_are_made_a_batch_at_a_time(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = convolution(tmp_path / "net.onnx")
    first, second = versions(network, tmp_path)
    layout = lay_out(definition_of(network))
    device.weights = frozenset(slot.name for slot in layout.slots)
    computed = {slot.name for slot in layout.slots if slot.is_computed}
    monkeypatch.setattr(module, "BATCH_BYTES", 1)

    count = give(loaded(network, bound(network, first)), bound(network, second), tmp_path)

    assert len(computed) > 1
    assert [len(names & computed) for names in device.refits] == [1] * len(computed)
    assert count == len(set.union(*device.refits)) == len(device.weights)


def test_what_is_combined_with_several_batches_counts_once(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = convolution(tmp_path / "net.onnx")
    first, second = versions(network, tmp_path)
    slots = lay_out(definition_of(network)).slots
    device.weights, device.combined = frozenset(slot.name for slot in slots), [slots[0].name]
    monkeypatch.setattr(module, "BATCH_BYTES", 1)

    assert give(loaded(network, bound(network, first)), bound(network, second), tmp_path) == len(slots)


def test_a_normalisation_sets_the_weights_it_is_folded_into(device: Device, tmp_path: Path) -> None:
    network = convolution(tmp_path / "net.onnx")
    first, second = versions(network, tmp_path)
    layout = lay_out(definition_of(network))
    device.weights = frozenset(slot.name for slot in layout.slots)

    give(loaded(network, bound(network, first)), bound(network, first | {"bn.var": second["bn.var"]}), tmp_path)

    assert set(device.set) == {slot.name for slot in layout.readers["bn.var"]}
    assert "conv.weight" not in device.set


def test_a_plan_that_cannot_be_written_is_told_with_the_remedy(network: Network, tmp_path: Path) -> None:
    engine = loaded(network, bound(network, versions(network, tmp_path)[0]), release_8())
    engine._engine.serialize = lambda: None  # type: ignore[assignment,return-value]
    with pytest.raises(BackendError, match="memory") as error:
        engine.serialize()
    assert error.value.code == "serialize_failed"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"Layers": [{"Metadata": "a\x1eb"}]}', {"Layers": [{"Metadata": "a\x1eb"}]}),
        ("no JSON, as some releases", "no JSON, as some releases"),
    ],
)
def test_what_the_inspector_says_is_kept_whatever_it_is(
    network: Network, tmp_path: Path, said: str, found: object
) -> None:
    engine = loaded(network, bound(network, versions(network, tmp_path)[0]))
    inspector = SimpleNamespace(get_engine_information=lambda _format: said)
    engine._engine.create_engine_inspector = lambda: inspector  # type: ignore[assignment,return-value]
    assert engine.inspect() == found


@pytest.mark.parametrize(
    ("dtype", "values", "kept"),
    [
        ("I64", [1, -(2**40), 2**40, 7], [1, -(2**31), 2**31 - 1, 7]),
        ("F64", [1.5, -1e300, 1e300, 7], [1.5, -3.4028235e38, 3.4028235e38, 7]),
    ],
)
def test_values_beyond_what_tensorrt_8_computes_with_become_its_limits(
    device: Device, tmp_path: Path, dtype: str, values: list[float], kept: list[float]
) -> None:
    network = perceptron(tmp_path / "net.onnx", dtype, width=2, depth=1)
    weights = network.weights(1)
    first = checkpoint(tmp_path / "1.safetensors", weights)
    changed = weights["0.weight"].dtype.type(values).reshape(2, 2)
    second = checkpoint(tmp_path / "2.safetensors", {"0.weight": changed})

    give(loaded(network, bound(network, first), release_8()), bound(network, first | second), tmp_path)

    narrow = np.dtype(np.int32 if dtype == "I64" else np.float32)
    np.testing.assert_array_equal(device.set["0.weight"], np.array(kept, narrow).reshape(2, 2))
    assert device.set["0.weight"].dtype == narrow
