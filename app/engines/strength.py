"""How strongly an engine has been verified, beside how strongly a request wants it verified.

The fingerprint of an engine leaves its verification out: that changes nothing of what it computes. So an equal engine
may have been published with less of a verification than a later request asks for, or with none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.engines.tables import Engine
from app.engines.work import Verification

Figures = Mapping[str, Any]
ORDER = ("none", "finite", "rebuild", "reference", "expected")  # what an engine was compared with, the weakest first


def choose_equal(engines: Sequence[Engine], asked: Verification) -> Engine | None:
    """Return the first engine that has been verified as strongly as asked, else the first that may be.

    One that is known to fail is left out. The engines' `verification` must be loaded.
    """
    usable = [engine for engine in engines if engine.verification.get("ok") is not False]
    return next((engine for engine in usable if suffices(engine.verification, asked)), next(iter(usable), None))


def suffices(figures: Figures, asked: Verification) -> bool:
    """Return whether the figures of a verification are all that `asked` would tell.

    A comparison with the reference stands for one with a rebuilt engine, and either of them for outputs that are
    finite, as far as the figures say that they are. Inputs and tolerance have to be those that are asked for, and
    made-up inputs stand for any that are not given.
    """
    if asked.against == "none":
        return True
    done = _done(figures)
    if figures.get("ok") is None:
        return asked.if_impossible == "publish" and _same(done, asked, "against", "inputs", "expected", "tolerance")
    return (
        _is_compared(figures, done, asked)
        and (asked.inputs is None or done.inputs == asked.inputs)
        and (asked.against == "finite" or _same(done, asked, "tolerance"))
        and (asked.coverage != "full" or _is_covered(figures))
    )


def is_worth_keeping(figures: Figures, own: Figures) -> bool:
    """Return whether figures say more of an engine than `own`, which it has: they fail it, or are as strong.

    An engine that has passed is not failed by bounds or expected outputs of a request's own. It would be taken from
    all others, who did not ask for those.
    """
    if own.get("ok") is None:
        return True
    if figures["ok"] is None:
        return False
    if figures["ok"] is False:
        return not (own["ok"] and (figures["against"] == "expected" or _allows_more(own, figures)))
    return _rank(figures) >= _rank(own) and not _allows_more(figures, own)


def _is_compared(figures: Figures, done: Verification, asked: Verification) -> bool:
    if asked.expected is not None:
        return done.expected == asked.expected
    if asked.against == "finite":
        return figures["against"] == "finite" or all(one["finite"] for one in figures.get("outputs", {}).values())
    return ORDER.index(figures["against"]) >= ORDER.index(asked.against)


def _done(figures: Figures) -> Verification:
    """Return how the engine was verified; earlier releases kept less of it than this one."""
    return Verification.model_validate({"against": figures.get("against", "none")} | dict(figures.get("asked") or {}))


def _same(done: Verification, asked: Verification, *fields: str) -> bool:
    return all(getattr(done, name) == getattr(asked, name) for name in fields)


def _allows_more(figures: Figures, other: Figures) -> bool:
    """Return whether some bound of the one lets pass what the same bound of the other does not."""
    wider, narrower = figures.get("tolerance") or {}, other.get("tolerance") or {}
    signs = {"relative_l2": 1, "cosine": -1, "max_abs": 1}  # a cosine is the least, the others are the most
    shared = signs.keys() & wider.keys() & narrower.keys()
    return any(signs[name] * wider[name] > signs[name] * narrower[name] for name in shared)


def _is_covered(figures: Figures) -> bool:
    sees = figures.get("sees")
    return sees is not None and sees["tried"] == sees["of"]


def _rank(figures: Figures) -> int:
    return ORDER.index(figures["against"])
