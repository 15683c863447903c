import itertools
import pickle
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from app.artifacts.store import ArtifactStore
from app.bindings.report import BindingReport, ParameterBinding
from app.bindings.service import StoredBinding
from app.bindings.transforms import Cast, Transpose
from app.errors import ServiceError
from app.weights.manifest import Manifest, TensorEntry
from workers.channel.messages import EngineFile, ParameterSource
from workers.jobs import stored
from workers.jobs.stored import BoundWeights, Sources

NAMES = ("a", "b", "c")
PATIENCE_S = 30


def key(root_plan: str, sources: tuple[ParameterSource, ...]) -> Hashable:
    return EngineFile("tensorrt", "/plan", root_plan, "/onnx", sources, ()).key


@pytest.fixture
def weights(store: ArtifactStore) -> Callable[..., BoundWeights]:
    """Makes weights of three tensors, which lie in a file of their own each and hold what is said, else their name."""
    numbers = itertools.count(1)

    def make(*, cast: bool = False, **values: str) -> BoundWeights:
        entries = []
        for name in NAMES:
            value = values.get(name, name).encode() * 8
            digest, _ = store.put_chunks([value])  # type: ignore[attr-defined]  # the local store has it
            entries.append(TensorEntry(name, "F32", (2, 1), value.hex(), digest, 0, 8))
        steps = (Transpose((1, 0)), Cast("F16")) if cast else (Transpose((1, 0)),)
        bindings = tuple(ParameterBinding(f"p.{name}", "F32", (1, 2), (name,), steps) for name in reversed(NAMES))
        binding = StoredBinding(BindingReport(bindings).to_json())
        rows = Manifest.of(entries).to_json()
        return BoundWeights(next(numbers), 1 + cast, rows, binding, "sha256:weights", "sha256:binding")

    return make


def test_sources_follow_the_order_of_the_binding_report(
    weights: Callable[..., BoundWeights], store: ArtifactStore
) -> None:
    sources = Sources(store).of(weights())
    assert [source.name for source in sources] == ["p.c", "p.b", "p.a"]
    assert [Path(source.tensors[0].path).read_bytes() for source in sources] == [b"c" * 8, b"b" * 8, b"a" * 8]
    assert sources[0].binding == ParameterBinding("p.c", "F32", (1, 2), ("c",), (Transpose((1, 0)),))


def test_what_two_versions_have_in_common_is_one_object(
    weights: Callable[..., BoundWeights], store: ArtifactStore
) -> None:
    sources = Sources(store)
    before, after = sources.of(weights()), sources.of(weights(b="x"))
    assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True]
    assert Path(after[1].tensors[0].path).read_bytes() == b"x" * 8
    assert after == Sources(store).of(weights(b="x"))


def test_a_version_that_is_read_again_is_the_same_object_as_long_as_its_files_lie_where_they_lay(
    weights: Callable[..., BoundWeights], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, read = Sources(store), weights()
    before = sources.of(read)
    assert sources.of(read) is before
    unchecked_path = store.unchecked_path
    monkeypatch.setattr(store, "unchecked_path", lambda digest: Path("/elsewhere") / unchecked_path(digest).name)
    after = sources.of(read)
    assert {Path(one.tensors[0].path).parent for one in after} == {Path("/elsewhere")}
    assert [one.content for one in after] == [one.content for one in before]


def test_versions_larger_than_what_is_kept_have_their_sources_in_common_too(
    weights: Callable[..., BoundWeights], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "KEPT_ROWS", 1)
    sources = Sources(store)
    before, after = sources.of(weights()), sources.of(weights(b="x"))
    assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_file_that_takes_long_to_come_holds_up_no_other_version(
    weights: Callable[..., BoundWeights], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = weights(a="x"), weights(a="y")
    (digest,) = {row[4] for row in slow.rows} - {row[4] for row in quick.rows}
    asked, come = Event(), Event()
    unchecked_path = store.unchecked_path

    def path(wanted: str) -> Path:
        if wanted == digest:
            asked.set()
            assert come.wait(PATIENCE_S)
        return unchecked_path(wanted)

    monkeypatch.setattr(store, "unchecked_path", path)
    sources = Sources(store)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(sources.of, slow)
        assert asked.wait(PATIENCE_S)
        try:
            assert len(pool.submit(sources.of, quick).result(PATIENCE_S)) == len(NAMES)
        finally:
            come.set()
        assert len(waiting.result(PATIENCE_S)) == len(NAMES)


def test_a_version_whose_file_is_gone_is_told_as_that_however_often_it_was_read(
    weights: Callable[..., BoundWeights], store: ArtifactStore
) -> None:
    sources, read = Sources(store), weights()
    gone = Path(sources.of(read)[0].tensors[0].path)
    gone.unlink()
    with pytest.raises(ServiceError):
        sources.of(read)


def test_the_same_tensors_through_other_transforms_are_other_sources(
    weights: Callable[..., BoundWeights], store: ArtifactStore
) -> None:
    sources = Sources(store)
    before, after = sources.of(weights()), sources.of(weights(cast=True))
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert {source.binding.transforms for source in after} == {(Transpose((1, 0)), Cast("F16"))}


def test_sources_survive_pickling(weights: Callable[..., BoundWeights], store: ArtifactStore) -> None:
    sources = Sources(store).of(weights(cast=True))
    restored: tuple[ParameterSource, ...] = pickle.loads(pickle.dumps(sources))  # noqa: S301 - our own
    assert restored == sources
    assert [type(one) for one in restored[0].binding.transforms] == [Transpose, Cast]
    assert key("plan", restored) == key("plan", sources)


def test_an_engine_is_found_by_its_plan_and_its_values_in_whatever_order(
    weights: Callable[..., BoundWeights], store: ArtifactStore
) -> None:
    sources = Sources(store).of(weights())
    assert key("plan", sources) == key("plan", sources[::-1])
    assert key("plan", sources) != key("other plan", sources)
    assert key("plan", sources) != key("plan", Sources(store).of(weights(a="x")))
    assert key("plan", sources) != key("plan", Sources(store).of(weights(cast=True)))
