"""A model that an engine can be built of."""

import pytest

from app.database import Database
from app.registry.service import create_model
from app.settings import Settings
from tests.engines.workbench import Workbench


@pytest.fixture
def bench(database: Database, settings: Settings) -> Workbench:
    """A model with one definition and one weight version that bind."""
    with database.transaction() as session:
        create_model(session, "minilm", "", {})
    bench = Workbench(database, settings)
    bench.add_definition()
    bench.add_epoch(1, label="epoch 1")
    return bench
