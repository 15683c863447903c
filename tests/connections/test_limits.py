import resource
from collections.abc import Iterator

import pytest

from app.connections.limits import Limits, raise_descriptor_limit
from app.settings import Settings


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_process_may_open_as_many_files_as_its_user() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard


def test_the_connections_stay_below_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.connections.limits.raise_descriptor_limit", lambda: 1024)
    assert Limits.of(Settings(max_connections=1000)).connections == 329
    assert Limits.of(Settings(max_connections=100)).connections == 100
