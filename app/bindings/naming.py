"""Which names of a checkpoint may mean a parameter: by their ends, wrappers and older spellings left out."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

# Segments that wrappers put into names: DataParallel, torch.compile, FSDP, checkpointing, PEFT.
WRAPPERS: Final = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_model", "base_layer"}
)
# TensorFlow's words for what a normalisation keeps.
OLDER: Final[Mapping[str, str]] = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
LEAVES: Final = frozenset({"weight", "bias", "running_mean", "running_var"})
MIN_TAIL: Final = 2  # segments that have to be equal: many names end in "weight"


@dataclass(frozen=True, slots=True)
class Namesake:
    """A tensor that a parameter may mean, and how many parameters the same difference of prefixes holds for."""

    tensor: str
    is_whole: bool  # whether one of the names is the other's end
    support: int


def plain(name: str) -> tuple[str, ...]:
    """Return the segments of a name without those of wrappers, in today's words."""
    segments = [one for one in name.split(".") if one not in WRAPPERS]
    if segments and segments[-1] in OLDER:
        segments[-1] = OLDER[segments[-1]]
    return tuple(segments)


def namesakes(parameters: Iterable[str], tensors: Collection[str]) -> dict[str, list[Namesake]]:
    """Return, for each parameter, the tensors whose names end most alike, those of the commonest prefix first.

    Only those stay that have as many parameters on their side as the first.
    """
    index = _by_tail(tensors)
    found = {}
    for parameter in parameters:
        segments = plain(parameter)
        tails = (segments[start:] for start in range(len(segments)))
        shared = next((tail for tail in tails if tail in index), None)
        if shared is not None:
            found[parameter] = [_Match(parameter, tensor, segments, len(shared)) for tensor in index[shared]]
    support = Counter(match.difference for matches in found.values() for match in matches)
    return {parameter: kept for parameter, matches in found.items() if (kept := _commonest(matches, support))}


@dataclass(frozen=True, slots=True)
class _Match:
    parameter: str
    tensor: str
    segments: tuple[str, ...]
    shared: int

    @property
    def is_whole(self) -> bool:
        return self.shared in {len(self.segments), len(plain(self.tensor))}

    @property
    def difference(self) -> "_Difference":
        return self.segments[: -self.shared], plain(self.tensor)[: -self.shared]


_Difference = tuple[tuple[str, ...], tuple[str, ...]]  # the segments before what is shared, of both names


def _by_tail(tensors: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    index: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for tensor in tensors:
        segments = plain(tensor)
        for start in range(len(segments)):
            index[segments[start:]].append(tensor)
    return index


def _commonest(matches: list[_Match], support: Mapping[_Difference, int]) -> list[Namesake]:
    told = [match for match in matches if match.is_whole or match.shared >= MIN_TAIL]
    kept = [Namesake(match.tensor, match.is_whole, support[match.difference]) for match in told]
    most = max((one.support for one in kept), default=0)
    return [one for one in kept if one.support == most]


def kind(name: str) -> str:
    """Return "weight", "bias" and the like if a name ends so, or ""."""
    leaf = name.rpartition(".")[2]
    leaf = OLDER.get(leaf, leaf)
    return leaf if leaf in LEAVES else ""
