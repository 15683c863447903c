"""What is found in a piece of source, so that nothing the adapter will use stays unseen."""

from pathlib import Path

import pytest

from benchmarks.tensorrt_bindings import uses
from benchmarks.tensorrt_bindings.uses import Use, adapter_uses

STUBS = Path(pytest.__file__).parents[1] / "tensorrt_bindings" / "tensorrt.pyi"
SOURCE = """
import tensorrt as trt


class Profiler(trt.IProfiler):
    def report_layer_time(self, layer_name: str, ms: float) -> None: ...

    def ours(self) -> None: ...


class Place:
    def __init__(self, engine: trt.ICudaEngine, log: trt.ILogger) -> None:
        self._refitter = trt.Refitter(engine, log)

    def put(self, made: trt.IExecutionContext | None) -> bool:
        if made is not None:
            made.set_tensor_address("x", memory=0)
        kind = trt.TensorLocation
        return self._refitter.set_named_weights("a", trt.Weights(), kind.HOST)
"""


@pytest.mark.slow
@pytest.mark.skipif(not STUBS.exists(), reason="tensorrt-stubs are not installed: see the Makefile")
def test_members_calls_and_overrides_are_found_whatever_holds_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "ROOT", tmp_path)
    (tmp_path / "piece").mkdir()
    (tmp_path / "piece" / "place.py").write_text(SOURCE)
    found = set(adapter_uses("piece")) - set(uses.UNTYPED)
    assert found >= {
        Use("", "Refitter", 2),
        Use("", "Weights", 0),
        Use("Refitter", "set_named_weights", 3),
        Use("IExecutionContext", "set_tensor_address", 1, ("memory",)),
        Use("TensorLocation", "HOST"),
        Use("IProfiler", "report_layer_time"),
    }
    assert not any(use.member == "ours" for use in found)
