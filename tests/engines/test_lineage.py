from datetime import UTC, datetime

from app.engines.lineage import Lineage, Relative, arrange

AT = datetime(2026, 11, 22, tzinfo=UTC)


def relative(number: int, parent: int | None, weights: int | None = None) -> Relative:
    """Engine `number` on weights of the same number, unless said otherwise."""
    held = weights or number
    return Relative(number, "refit" if parent else "build", parent, held, 100 + held, None, AT)


#   1 (build) ── 2 ── 4 ── 5        3 (build)
#             └─ 6 ── 7
TREE = [
    relative(1, None),
    relative(2, 1),
    relative(3, None),
    relative(4, 2),
    relative(5, 4),
    relative(6, 1),
    relative(7, 6),
]


def numbers(relatives: tuple[Relative, ...]) -> list[int]:
    return [one.number for one in relatives]


def family_of(number: int, ancestors: int = 10, descendants: int = 10) -> Lineage:
    return arrange(TREE, number, ancestors=ancestors, descendants=descendants)


def test_ancestors_come_nearest_first_and_end_in_the_build() -> None:
    assert numbers(family_of(5).ancestors) == [4, 2, 1]


def test_descendants_come_level_by_level() -> None:
    assert numbers(family_of(1).descendants) == [2, 6, 4, 7, 5]


def test_siblings_and_strangers_are_no_relatives() -> None:
    assert numbers(family_of(2).members) == [2, 1, 4, 5]


def test_a_build_without_refits_stands_alone() -> None:
    lineage = family_of(3)
    assert numbers(lineage.members) == [3]
    assert lineage.ancestors_complete
    assert lineage.descendants_complete


def test_a_cut_off_direction_says_so() -> None:
    lineage = family_of(4, ancestors=1, descendants=0)
    assert numbers(lineage.members) == [4, 2]
    assert not lineage.ancestors_complete
    assert not lineage.descendants_complete


def test_a_limit_that_is_just_reached_cuts_nothing_off() -> None:
    lineage = family_of(2, ancestors=1, descendants=2)
    assert lineage.ancestors_complete
    assert lineage.descendants_complete


def test_an_ancestor_that_was_not_loaded_leaves_the_line_incomplete() -> None:
    lineage = arrange(TREE[1:], 2, ancestors=10, descendants=10)
    assert not lineage.ancestors_complete


def test_weight_steps_pair_each_refit_with_its_parents_weights() -> None:
    assert family_of(4).weight_steps == {4: (102, 104), 2: (101, 102), 5: (104, 105)}


def test_a_refit_whose_parent_was_cut_off_has_no_weight_step() -> None:
    assert family_of(5, ancestors=1).weight_steps == {5: (104, 105)}
