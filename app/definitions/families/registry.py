"""The families there are. Adding one is adding its module and a line here.

A family is a module with a function `build(config, precision) -> FamilyGraph`. It imports onnx, so only the child
loads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

if TYPE_CHECKING:
    from onnx import ModelProto

Precision = Literal["fp32", "fp16"]

FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bert": "app.definitions.families.bert",
        "gpt2": "app.definitions.families.gpt2",
    }
)


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
    """A family's module."""

    def build(self, config: Mapping[str, Any], precision: Precision) -> FamilyGraph:
        """Build the graph of a Hugging Face config; Rejected with every fault of the config."""


def load_family(name: str) -> Family:
    """Import a family's module; KeyError for one there is not."""
    return cast("Family", import_module(FAMILIES[name]))
