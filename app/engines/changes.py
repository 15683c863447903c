"""How much each refit of a lineage changed."""

from app.database import Database
from app.engines.lineage import Family
from app.weights.diff import diff
from app.weights.manifest import Manifest
from app.weights.service import load_rows


def count_changed_tensors(database: Database, family: Family) -> dict[int, int]:
    """Count, by engine number, the tensors that differ from the weights of the engine's parent.

    Added, removed and changed tensors count alike. Loads one manifest at a time, each in a session of its own,
    and keeps only the one before: along a chain of refits none is loaded twice.
    """
    counts: dict[tuple[int, int], int] = {}
    held: tuple[int, Manifest] | None = None
    steps = family.weight_steps
    for older, newer in sorted(set(steps.values())):
        before = held[1] if held is not None and held[0] == older else _load(database, older)
        after = before if newer == older else _load(database, newer)
        held = (newer, after)
        counts[older, newer] = len(diff(before, after).changes)
    return {number: counts[step] for number, step in steps.items()}


def _load(database: Database, weights_id: int) -> Manifest:
    with database.reading() as session:
        rows = load_rows(session, weights_id)
    return Manifest.from_json(rows)
