"""Runs of releases in words: "8.6.1 to 10.16.1.11, RTX 1.4.0.76 on"."""

from collections.abc import Collection, Iterator, Sequence


def spans(having: Collection[str], releases: Sequence[str]) -> str:
    """Return in words which of `releases` are in `having`; "all" if all are, and empty if none is."""
    if len(having) == len(releases):
        return "all"
    return ", ".join(_word(run, releases) for run in _runs(having, releases))


def within(text: str, releases: Sequence[str]) -> set[str]:
    """Return the releases that `spans` put into words."""
    if text == "all":
        return set(releases)
    found: set[str] = set()
    for part in filter(None, text.split(", ")):
        first, _, last = part.removesuffix(" on").partition(" to ")
        end = len(releases) - 1 if part.endswith(" on") else releases.index(last or first)
        found.update(releases[releases.index(first) : end + 1])
    return found


def _runs(having: Collection[str], releases: Sequence[str]) -> Iterator[list[str]]:
    run: list[str] = []
    for release in releases:
        if release in having:
            run.append(release)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _word(run: Sequence[str], releases: Sequence[str]) -> str:
    if run[-1] == releases[-1]:
        return f"{run[0]} on"
    return run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}"
