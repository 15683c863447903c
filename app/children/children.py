"""The children of one API process."""

from pathlib import Path
from typing import Final

from app.children.fork_server import ForkServer
from app.children.house import House

MODULES: Final = ("app.definitions.child", "app.weights.child")  # what children call, imported once


class Children:
    """Where definitions are made, checkpoints are indexed and builds are looked at; none of them waits for another."""

    def __init__(self, server: ForkServer, scratch: Path) -> None:
        self.server = server
        self.definitions = House(server, scratch)
        self.weights = House(server, scratch)
        self.preflights = House(server, scratch, what="have their builds judged")
