from tests.serve.conftest import launch
from tests.workers.conftest import worker

__all__ = ["launch", "worker"]
