"""Workers that report what they offer."""

import pytest

from app.database import Database
from app.settings import Settings
from tests.engines.workbench import Workbench


@pytest.fixture
def bench(database: Database, settings: Settings) -> Workbench:
    return Workbench(database, settings)
