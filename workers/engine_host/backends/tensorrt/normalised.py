"""The layout that is compiled: of the normalised definition, as long as a refit finds the same slots.

A refit and a load lay out the definition itself, which is cheap and depends on the definition and the option
`refit_layout` alone. So each slot of the graph that is compiled has to be one of the definition's own slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnx import ModelProto

from app.definitions.profiles import Profile
from workers.engine_host.backends.tensorrt.layout import Layout, lay_out
from workers.engine_host.normaliser.mixed_up import mixed_up
from workers.engine_host.normaliser.parser import Parser

if TYPE_CHECKING:
    from workers.engine_host.normaliser.normalise import Rewrite


@dataclass(frozen=True, slots=True)
class NormalisedLayout:
    """The layout to compile, and how its graph differs from the definition's.

    `kept_because` says why the definition is compiled as it is though it could be normalised, else it is empty.
    `mixed_up` are the nodes of which this parser may give one output for another: this layout must not be compiled.
    """

    layout: Layout
    rewrites: "Sequence[Rewrite]" = ()
    kept_because: str = ""
    mixed_up: Sequence[str] = ()


def normalised_layout(
    definition: ModelProto, layout: Layout, profiles: Sequence[Profile], *, refit_layout: str, parser: Parser
) -> NormalisedLayout:
    """Normalise a definition for a parser, and lay it out; `layout` is that of the definition itself."""
    normal = _normalised_layout(definition, layout, profiles, refit_layout, parser)
    found = mixed_up(normal.layout.model) if parser.single_branches else ()
    return replace(normal, mixed_up=found)


def _normalised_layout(
    definition: ModelProto, layout: Layout, profiles: Sequence[Profile], refit_layout: str, parser: Parser
) -> NormalisedLayout:
    from workers.engine_host.normaliser.normalise import normalise  # noqa: PLC0415 - half a second, for builds only

    try:
        normal = normalise(definition, profiles, parser)
    except Exception as error:  # noqa: BLE001 - the rewriting libraries raise whatever they meet
        return NormalisedLayout(layout, kept_because=f"normalising it failed ({type(error).__name__}: {error})")
    if not normal.rewrites:
        return NormalisedLayout(layout)
    rewritten = lay_out(normal.model, refit_layout)
    strange = [slot.name for slot in rewritten.slots if slot not in layout.slots]
    if strange:
        why = f"normalised, it would hold other weights than its refits set ({', '.join(strange[:5])})"
        return NormalisedLayout(layout, kept_because=why)
    return NormalisedLayout(rewritten, normal.rewrites)
