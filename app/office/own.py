"""What the office has of its own."""

from enum import Enum


class Own(Enum):
    """Stands for an argument that the office replaces by its own."""

    DATABASE = "database"
    STORE = "store"
    SETTINGS = "settings"
