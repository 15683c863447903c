import gc
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from app.bindings.report import ParameterBinding
from app.bindings.transforms import Cast, Concat, Transpose
from tests.workers.networks import checkpoint
from workers.channel.messages import BackendError, ParameterSource, TensorFile
from workers.engine_host import stored_bytes
from workers.engine_host.tensors import Array, MappedFiles, ParameterFiles, read_tensors, write_tensors


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, TensorFile]:
    random = np.random.default_rng(1)
    values = {name: random.standard_normal((3, 2)).astype(np.float32) for name in "ab"}
    return checkpoint(tmp_path / "a.safetensors", values)


def test_outputs_are_written_the_same_way_each_time_and_aligned(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {"b": np.arange(3, dtype=np.int8), "a": np.array(2.5), "c": np.zeros((0, 4), np.float16)}
    write_tensors(str(tmp_path / "one"), arrays)
    write_tensors(str(tmp_path / "two"), dict(reversed(arrays.items())))

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for read in (load_file(tmp_path / "one"), read_tensors(str(tmp_path / "one"))):
        assert {name: (value.dtype, value.shape) for name, value in read.items()} == {
            name: (value.dtype, value.shape) for name, value in arrays.items()
        }
        np.testing.assert_array_equal(read["b"], arrays["b"])
    assert all(array.flags.aligned for array in read_tensors(str(tmp_path / "one")).values())


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_tensors(str(path), {"x": np.ones(2, np.float32)})
    before = path.read_bytes()

    with pytest.raises(KeyError):
        write_tensors(str(path), {"x": np.ones(2, np.complex64)})
    with pytest.raises(OSError, match="No such file"):
        write_tensors(str(tmp_path / "nowhere" / "out"), {"x": np.ones(2, np.float32)})

    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_parameter_without_transforms_is_its_tensor_where_it_lies(
    tensors: dict[str, TensorFile], tmp_path: Path
) -> None:
    files = ParameterFiles(tmp_path / "scratch")
    value = files.locate([ParameterSource(ParameterBinding("p", "F32", (3, 2), ("a",)), (tensors["a"],))])["p"]

    assert (value.path, value.offset, value.nbytes) == (tensors["a"].path, tensors["a"].offset, 24)
    assert not (tmp_path / "scratch").exists()


def test_transformed_parameters_share_a_scratch_file_that_goes_with_its_last_value(
    tensors: dict[str, TensorFile], tmp_path: Path
) -> None:
    both = (tensors["a"], tensors["b"])
    joined = ParameterSource(ParameterBinding("j", "F32", (6, 2), ("a", "b"), (Concat(0),)), both)
    turned = ParameterSource(ParameterBinding("t", "F16", (2, 3), ("a",), (Transpose((1, 0)), Cast("F16"))), both[:1])
    same = ParameterSource(ParameterBinding("s", "F16", (2, 3), ("a",), turned.binding.transforms), both[:1])
    files, steps = ParameterFiles(tmp_path / "scratch"), []

    values = files.locate([joined, turned, same], lambda done, total: steps.append((done, total)))

    a, b = (MappedFiles().view(one) for one in both)
    np.testing.assert_array_equal(MappedFiles().view(values["j"]), np.concatenate([a, b]))
    np.testing.assert_array_equal(MappedFiles().view(values["t"]), a.T.astype(np.float16))
    assert values["s"] is values["t"]
    assert steps == [(0, 3), (1, 3), (2, 3)]
    kept = values.pop("j")
    values.clear()
    gc.collect()
    assert [str(one) for one in (tmp_path / "scratch").iterdir()] == [kept.path]
    assert files.locate([joined])["j"] is kept
    del kept
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_file_that_is_missing_or_too_short_is_named(tensors: dict[str, TensorFile], tmp_path: Path) -> None:
    source = ParameterSource(ParameterBinding("p", "F32", (3, 2), ("a",)), (tensors["a"],))
    path = Path(tensors["a"].path)
    path.write_bytes(path.read_bytes()[: tensors["a"].offset + 23])
    with pytest.raises(BackendError, match=f"weights_unreadable: {path} has"):
        ParameterFiles(tmp_path).locate([source])

    path.unlink()
    with pytest.raises(BackendError, match=f"file_failed: {path}: No such file"):
        ParameterFiles(tmp_path).locate([source])


def test_a_transform_that_does_not_fit_its_tensors_is_an_error(tensors: dict[str, TensorFile], tmp_path: Path) -> None:
    source = ParameterSource(ParameterBinding("p", "F32", (3, 3), ("a",), (Transpose((1, 0)),)), (tensors["a"],))
    with pytest.raises(BackendError, match="transform_failed: p is F32"):
        ParameterFiles(tmp_path).locate([source])
    assert not list(tmp_path.glob("*.bin"))


def test_inputs_of_a_foreign_dtype_are_refused_by_name(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "in").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(BackendError, match="x is C64") as error:
        read_tensors(str(tmp_path / "in"))
    assert error.value.code == "bad_inputs"


def test_only_tensors_that_are_used_are_checked_and_each_only_once(
    tensors: dict[str, TensorFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested = []

    def digest(tensor: TensorFile, _opened: object) -> str:
        digested.append(tensor)
        return tensor.blake3

    monkeypatch.setattr(stored_bytes, "_digest", digest)
    a, b = (ParameterSource(ParameterBinding("p", "F32", (3, 2), (name,)), (tensors[name],)) for name in "ab")
    files = ParameterFiles(tmp_path / "scratch")

    for sources in ([a], [a], [a, b]):
        files.locate(sources)
        files.settle()
    assert digested == [tensors["a"], tensors["b"]]

    Path(tensors["a"].path).touch()
    files.locate([a])
    files.settle()
    assert digested == [tensors["a"], tensors["b"], tensors["a"]]


def test_what_was_computed_of_a_damaged_tensor_is_forgotten(tensors: dict[str, TensorFile], tmp_path: Path) -> None:
    path, content = Path(tensors["a"].path), Path(tensors["a"].path).read_bytes()
    source = ParameterSource(ParameterBinding("t", "F32", (2, 3), ("a",), (Transpose((1, 0)),)), (tensors["a"],))
    files = ParameterFiles(tmp_path / "scratch")
    path.write_bytes(content[: tensors["a"].offset] + b"\1" * 24 + content[tensors["a"].offset + 24 :])
    damaged = files.locate([source])["t"]
    with pytest.raises(
        BackendError, match=f"weights_damaged: The bytes of the tensor a in the file sha256:{path.name}"
    ):
        files.settle()

    path.write_bytes(content)
    found = files.locate([source])["t"]
    files.settle()
    assert found is not damaged
    np.testing.assert_array_equal(MappedFiles().view(found), MappedFiles().view(tensors["a"]).T)
