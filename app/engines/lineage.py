"""The ancestors and descendants of an engine."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Relative:
    """One engine of a lineage; `parent` is the number of the engine it was refitted from, None for a build."""

    number: int
    method: str
    parent: int | None
    weights: int
    weights_id: int
    label: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Lineage:
    """An engine, its ancestors up to the first build, nearest first, and its descendants, level by level.

    If a direction was cut off, its `…_complete` is False. The lineage of the last engine in it goes on from there.
    """

    engine: Relative
    ancestors: tuple[Relative, ...]
    descendants: tuple[Relative, ...]
    ancestors_complete: bool
    descendants_complete: bool

    @property
    def members(self) -> tuple[Relative, ...]:
        """All engines of the lineage, the engine itself first."""
        return (self.engine, *self.ancestors, *self.descendants)

    @property
    def weight_steps(self) -> dict[int, tuple[int, int]]:
        """Map each member whose parent is a member too to two `weights_id`: its parent's and its own."""
        held = {member.number: member.weights_id for member in self.members}
        return {
            member.number: (held[member.parent], member.weights_id) for member in self.members if member.parent in held
        }


def arrange(relatives: Iterable[Relative], number: int, *, ancestors: int, descendants: int) -> Lineage:
    """Return the lineage of engine `number`, with at most so many ancestors and descendants out of `relatives`.

    An engine that is neither ancestor nor descendant, such as another child of the parent, is left out.
    """
    by_number = {relative.number: relative for relative in relatives}
    engine = by_number[number]
    above = _ancestors(by_number, engine)[:ancestors]
    below = _descendants(by_number.values(), number)
    return Lineage(
        engine,
        tuple(above),
        tuple(below[:descendants]),
        ancestors_complete=(above[-1] if above else engine).parent is None,
        descendants_complete=len(below) <= descendants,
    )


def _ancestors(by_number: Mapping[int, Relative], engine: Relative) -> list[Relative]:
    chain: list[Relative] = []
    parent = engine.parent
    while parent is not None and parent in by_number:
        chain.append(by_number[parent])
        parent = by_number[parent].parent
    return chain


def _descendants(relatives: Iterable[Relative], number: int) -> list[Relative]:
    children: dict[int | None, list[Relative]] = defaultdict(list)
    for relative in sorted(relatives, key=lambda one: one.number):
        children[relative.parent].append(relative)
    found: list[Relative] = []
    level = [number]
    while level:
        below = [child for parent in level for child in children[parent]]
        found += below
        level = [child.number for child in below]
    return found
