"""Families: architectures whose graph is built from a Hugging Face config.

A family is a module of `app.definitions.families`, or what an entry point of the group `enginesmith.families` names.
Its name is the module's, or the entry point's. It imports onnx, so only the parsing child loads it; the API knows the
names alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from app.plugins import find_plugins

if TYPE_CHECKING:
    from onnx import ModelProto

FOLDER: Final = "app.definitions.families"
GROUP: Final = "enginesmith.families"
Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class FamilyGraph:
    """What a family makes of a config.

    `rules` are binding rules that apply after the client's; `config` is every key that shaped the graph, with the
    values in force.
    """

    model: "ModelProto"
    rules: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]


class Family(Protocol):
    """What a family's module has."""

    def build(self, config: Mapping[str, Any], precision: Precision) -> FamilyGraph:
        """Build the graph of a Hugging Face config; raises Rejected with every fault of the config."""


def family_names() -> tuple[str, ...]:
    """Return the name of every family, sorted; none is imported."""
    return tuple(sorted(find_plugins(FOLDER, GROUP)))


def load_family(name: str) -> Family:
    """Import a family; raises KeyError if there is none of this name."""
    return cast("Family", find_plugins(FOLDER, GROUP)[name].load())
