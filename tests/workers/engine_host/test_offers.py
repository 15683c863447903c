from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from app.backends import BackendEntry, backend_entry
from app.errors import ServiceError
from app.fleet.backend_offer import read_offers
from app.fleet.schemas import WORKER
from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Backend, Offered
from workers.engine_host.backends.onnxruntime.backend import OnnxruntimeBackend
from workers.engine_host.offers import offers
from workers.jobs.worker import usable_backends

OFFERED = Offered("8.6.1", ("8.6.1/H100",), ("8.6.1/H100", "8.6.1/ampere_plus"), {"build": True})


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("app.backends", "workers.engine_host.offers"):
        monkeypatch.setattr(f"{module}.installed_backends", lambda _device: {"abacus": "1.0", "tensorrt": "8.6.0"})
    abacus = BackendEntry("abacus", ("abacus",), ("cuda",), "abacus:open_backend", "abacus[beads]")
    entries = {"abacus": abacus, "tensorrt": backend_entry("tensorrt")}
    monkeypatch.setattr("workers.engine_host.offers.backend_entry", entries.__getitem__)


def opening(name: str) -> Backend:
    return cast("Backend", SimpleNamespace(offered=OFFERED)) if name == "tensorrt" else failing(name)


def failing(name: str) -> Backend:
    raise ImportError("libbeads.so.2: cannot open shared object file", name=name)


def raising(error: Exception) -> Callable[[str], Backend]:
    def opened(_name: str) -> Backend:
        raise error

    return opened


def test_a_backend_is_offered_with_its_own_version_and_platforms() -> None:
    assert offers("cuda:0", opening)["tensorrt"] == {
        "version": "8.6.1",
        "makes": ["8.6.1/H100"],
        "loads": ["8.6.1/H100", "8.6.1/ampere_plus"],
        "capabilities": {"build": True},
    }


def test_a_backend_that_cannot_be_imported_says_why_and_takes_no_other_with_it() -> None:
    found = offers("cuda:0", opening)
    assert "makes" in found["tensorrt"]
    assert found["abacus"]["version"] == "1.0"
    assert "libbeads.so.2" in found["abacus"]["unavailable"]
    assert "pip install --force-reinstall 'abacus[beads]'" in found["abacus"]["unavailable"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BackendError("no_gpu", "No GPU. Buy one."), "No GPU. Buy one."),
        (RuntimeError("bead stuck"), "does not start (RuntimeError: bead stuck)"),
    ],
)
def test_a_backend_that_does_not_open_says_why(error: Exception, reason: str) -> None:
    assert reason in offers("cuda:0", raising(error))["abacus"]["unavailable"]


def test_the_worker_that_the_documentation_shows_says_what_one_like_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = WORKER["backends"]
    versions = {"onnxruntime": shown["onnxruntime"]["version"], "tensorrt_rtx": shown["tensorrt_rtx"]["version"]}
    monkeypatch.undo()  # here the entries themselves say what a device may have

    def version(entry: BackendEntry) -> str | None:
        return versions.get(entry.package)

    def opened(name: str) -> Backend:
        if name == "onnxruntime":
            offered = replace(OnnxruntimeBackend.offered, version=versions[name])
            return cast("Backend", SimpleNamespace(offered=offered))
        raise ImportError("libtensorrt_rtx.so.1: cannot open shared object file: No such file or directory", name=name)

    monkeypatch.setattr(BackendEntry, "version", property(version))
    assert offers(WORKER["device"]["kind"], opened) == shown


def test_a_worker_takes_the_backends_that_can_be_used() -> None:
    assert list(usable_backends("cuda:0", read_offers(offers("cuda:0", opening)), "")) == ["tensorrt"]


def test_a_worker_without_any_says_what_is_wrong_with_each_and_what_to_install() -> None:
    with pytest.raises(ServiceError) as caught:
        usable_backends("cuda:0", read_offers(offers("cuda:0", failing)), "pip install 'enginesmith[tensorrt-rtx]'")
    assert caught.value.code == "no_backend"
    assert "No backend can be used on cuda:0. abacus: abacus 1.0 is installed but" in caught.value.detail
    assert "Install one with pip install 'enginesmith[tensorrt-rtx]'" in caught.value.detail
