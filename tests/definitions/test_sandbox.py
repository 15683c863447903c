from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

from app.children.house import House
from app.children.limits import ChildLimits
from app.definitions import sandbox
from app.definitions.limits import child_limits
from app.errors import ServiceError

Make = Callable[..., ModelProto]


@pytest.fixture
def upload(tmp_path: Path, tiny_model: Make) -> Path:
    path = tmp_path / "upload.onnx"
    path.write_bytes(tiny_model().SerializeToString())
    return path


def limit(monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    def limits(file_bytes: int) -> ChildLimits:
        return replace(child_limits(file_bytes), **changed)  # type: ignore[arg-type]

    monkeypatch.setattr(sandbox, "child_limits", limits)


def fault(house: House, upload: Path) -> ServiceError:
    with pytest.raises(ServiceError) as raised, sandbox.construct_from_file(house, upload):
        pass
    return raised.value


def test_files_live_as_long_as_the_block(house: House, upload: Path) -> None:
    with sandbox.construct_from_file(house, upload) as made:
        assert made.graph.exists()
        assert made.weights is None
    assert list((upload.parent / "scratch").iterdir()) == []


def test_a_child_that_stalls_is_no_fault_of_the_file(
    house: House, upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, wall_s=0.001)
    refused = fault(house, upload)
    assert (refused.status, refused.code) == (503, "parsing_stalled")


def test_a_file_that_takes_much_processor_time_is_blamed(
    house: House, upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, cpu_s=1)
    child = house.child

    def burning(_function: str, *rest: Any) -> dict[str, Any]:  # noqa: ANN401 - stands in for the method
        return child("tests.children.deeds:burn", *rest)

    monkeypatch.setattr(house, "child", burning)
    refused = fault(house, upload)
    assert (refused.status, refused.code) == (422, "parsing_timeout")


def test_a_child_out_of_memory_is_reported(house: House, upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, address_space=64 * 1024 * 1024)
    assert fault(house, upload).code in {"parser_crashed", "too_much_memory"}


@pytest.mark.parametrize("most", [50, 2])
def test_an_answer_that_is_too_long_is_refused(
    house: House, upload: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("app.children.fork_server.MAX_ANSWER_BYTES", most)
    assert fault(house, upload).code == "too_large_graph"


def test_a_crash_is_reported(house: House, upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = house.child

    def crashing(_function: str, task: Any, *rest: Any) -> dict[str, Any]:  # noqa: ANN401 - stands in for the method
        return child("tests.children.deeds:kill_itself", task | {"signal": 11}, *rest)

    monkeypatch.setattr(house, "child", crashing)
    refused = fault(house, upload)
    assert refused.code == "parser_crashed"
    assert "exit status -11" in refused.detail
