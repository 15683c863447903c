from tests.workers.conftest import worker

__all__ = ["worker"]
