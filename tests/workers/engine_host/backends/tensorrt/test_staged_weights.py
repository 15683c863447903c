"""Refits whose weights lie in page-locked memory; the refitter and CUDA are stand-ins."""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from tests.workers.engine_host.backends.tensorrt.test_engine import give, loaded, versions
from tests.workers.engine_host.cuda.conftest import FakeCudart
from tests.workers.networks import Network, bound, perceptron
from workers.channel.messages import BackendError, ParameterSource
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.backends.tensorrt import engine as engine_module
from workers.engine_host.backends.tensorrt import staged_weights
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine
from workers.engine_host.backends.tensorrt.refitting import KnownWeights
from workers.engine_host.backends.tensorrt.weight_values import Named
from workers.engine_host.cuda import page_locked_values
from workers.engine_host.cuda.page_locked_values import PageLockedValues, process_values
from workers.engine_host.tensors import Array, ParameterFiles

NAMES = ("0.weight", "0.bias", "1.weight", "1.bias")
Sources = tuple[ParameterSource, ...]


class Refits:
    """In place of `refit`: notes what each refit was given, and whether it lay in page-locked memory."""

    def __init__(self, cuda: FakeCudart) -> None:
        self.cuda = cuda
        self.values: dict[str, Array] = {}
        self.locked: set[str] = set()
        self.batches: list[list[str]] = []
        self.at_refit: Callable[[], None] = lambda: None

    def __call__(
        self, _engine: object, weights: Iterable[Named], _can: object, _log: object, _known: KnownWeights
    ) -> set[str]:
        self.at_refit()
        given = {name: array for name, array, _ in weights}
        self.values |= {name: np.array(array) for name, array in given.items()}
        for name, array in given.items():
            (self.locked.add if self.cuda._is_page_locked(array.ctypes.data) else self.locked.discard)(name)
        self.batches.append(list(given))
        return set(given)


@pytest.fixture
def refits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refits]:
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setattr(page_locked_values, "LEAST_LOCKED", 1)
    process_values.cache_clear()
    process_values().limit = 1 << 20
    refits = Refits(fake)
    monkeypatch.setattr(engine_module, "refit", refits)
    monkeypatch.setattr(engine_module, "refittable_weights", lambda _engine, _log: frozenset(NAMES))
    yield refits
    process_values().close()
    process_values.cache_clear()
    gc.collect()
    assert not fake.page_locked


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


@pytest.fixture
def both(network: Network, tmp_path: Path) -> tuple[Sources, Sources]:
    first, second = versions(network, tmp_path)
    return bound(network, first), bound(network, second)


@pytest.fixture
def engine(network: Network, both: tuple[Sources, Sources], refits: Refits) -> TensorrtEngine:  # noqa: ARG001 - first
    return loaded(network, both[0], release_8())


def refit_to(engine: TensorrtEngine, sources: Sources, folder: Path) -> int:
    count = give(engine, sources, folder)
    process_values().wait()
    return count


@pytest.fixture
def second(engine: TensorrtEngine, both: tuple[Sources, Sources], tmp_path: Path) -> TensorrtEngine:
    """The engine after a refit to the second version, which memory was locked for."""
    refit_to(engine, both[1], tmp_path)
    return engine


def holds(refits: Refits, network: Network, seed: int) -> bool:
    wanted = network.weights(seed)
    return all(np.array_equal(refits.values[name], wanted[name]) for name in NAMES)


def test_the_first_refit_waits_for_no_memory_and_the_next_finds_it(
    engine: TensorrtEngine, both: tuple[Sources, Sources], refits: Refits, network: Network, tmp_path: Path
) -> None:
    first, second = both
    assert refit_to(engine, second, tmp_path) == 4
    assert refits.locked == set()
    assert holds(refits, network, 2)
    assert refit_to(engine, first, tmp_path) == 4
    assert refits.locked == {*NAMES}
    assert holds(refits, network, 1)


def test_a_switch_back_reads_no_file(
    engine: TensorrtEngine, both: tuple[Sources, Sources], refits: Refits, network: Network, tmp_path: Path
) -> None:
    first, second = both
    for sources in (second, first, second):
        refit_to(engine, sources, tmp_path)
    for sources in both:
        Path(sources[0].tensors[0].path).unlink()
    for sources, seed in ((first, 1), (second, 2)):
        refits.values.clear()
        refit_to(engine, sources, tmp_path)
        assert holds(refits, network, seed)


def test_weights_are_read_in_the_order_of_the_file_while_earlier_ones_are_set(
    second: TensorrtEngine,
    both: tuple[Sources, Sources],
    refits: Refits,
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "BATCH_BYTES", 1)
    begun: list[str] = []
    began: list[int] = []
    read = staged_weights._read_run
    monkeypatch.setattr(
        staged_weights,
        "_read_run",
        lambda path, pieces: (begun.append(path), read(path, pieces)),  # type: ignore[func-returns-value]
    )
    refits.batches.clear()
    refits.at_refit = lambda: began.append(len(begun))

    refit_to(second, both[0], tmp_path)

    offsets = {one.name: one.tensors[0].offset for one in both[0]}
    assert refits.batches == [[name] for name in sorted(NAMES, key=lambda name: offsets[name])]
    assert holds(refits, network, 1)
    assert len(begun) == 4
    assert began[0] >= 1  # the next one may be under way


def test_memory_for_two_of_four_weights_serves_all_in_turn(
    engine: TensorrtEngine,
    both: tuple[Sources, Sources],
    refits: Refits,
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process_values().limit = 8 * 16 * 4 + 1
    monkeypatch.setattr(engine_module, "BATCH_BYTES", 1)
    for sources, seed in ((both[1], 2), (both[0], 1), (both[1], 2)):
        refit_to(engine, sources, tmp_path)
        assert holds(refits, network, seed)
        assert process_values().nbytes <= process_values().limit
    assert refits.locked


def test_damaged_bytes_are_not_kept(
    second: TensorrtEngine, both: tuple[Sources, Sources], refits: Refits, network: Network, tmp_path: Path
) -> None:
    files = ParameterFiles(tmp_path / "made")
    files.on_damage(process_values().forget_all)
    path = Path(both[0][0].tensors[0].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    watch = Stopwatch(lambda _message: None)
    second.set_parameters(both[0], files, watch, lambda _done, _total: None)
    with pytest.raises(BackendError, match="not those that were uploaded"):
        files.settle()
    path.write_bytes(whole)
    again = loaded(network, both[1], release_8())
    refit_to(again, both[0], tmp_path)
    assert holds(refits, network, 1)


def test_a_file_that_ends_early_fails_the_refit_and_leaves_nothing_behind(
    second: TensorrtEngine,
    both: tuple[Sources, Sources],
    refits: Refits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as reading:
        reading.setattr(os, "preadv", lambda _file, _buffers, _offset: 0)
        with pytest.raises(BackendError, match="are needed"):
            refit_to(second, both[0], tmp_path)
    assert not any(process_values()._values.values())
    assert refits.cuda.page_locked


def test_reads_that_return_early_go_on(
    second: TensorrtEngine,
    both: tuple[Sources, Sources],
    refits: Refits,
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole: Callable[[int, list[memoryview], int], int] = os.preadv

    def three_bytes(file: int, buffers: list[memoryview], offset: int) -> int:
        wanted = next(one for one in buffers if one.nbytes)
        return whole(file, [wanted[:3]], offset)

    monkeypatch.setattr(os, "preadv", three_bytes)
    refit_to(second, both[0], tmp_path)
    assert refits.locked == {*NAMES}
    assert holds(refits, network, 1)


def test_large_weights_are_cut_and_small_ones_are_read_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(staged_weights, "WIDEST_GAP", 4)
    pieces = [(0, 4, "a"), (4, 20, "b"), (26, 2, "c"), (40, 4, "d")]  # offset, bytes, name
    found = [(offset, np.zeros(nbytes, np.uint8), name) for offset, nbytes, name in pieces]
    runs = [[(offset, memory.nbytes, name) for offset, memory, name in run] for run in staged_weights._runs(found, 24)]
    assert runs == [[(0, 4, "a"), (4, 20, "b")], [(26, 2, "c")], [(40, 4, "d")]]

    data = bytes(range(64))
    (tmp_path / "file").write_bytes(data)
    staged_weights._read_run(str(tmp_path / "file"), [(offset, memory) for offset, memory, _ in found])
    assert [memory.tobytes() for _, memory, _ in found] == [data[at : at + nbytes] for at, nbytes, _ in pieces]


def test_releases_that_refit_from_the_device_stage_by_themselves(
    network: Network, both: tuple[Sources, Sources], refits: Refits, tmp_path: Path
) -> None:
    engine = loaded(network, both[0], release_10())
    for sources in (both[1], both[0], both[1]):
        refit_to(engine, sources, tmp_path)
    assert refits.locked == set()
    assert isinstance(process_values(), PageLockedValues)
    assert process_values().nbytes == 0
