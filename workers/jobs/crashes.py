"""Crashes of an engine host: which deaths are crashes, and what was being compiled."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from app.redaction import public
from workers.channel.host import LAST_LINE, EngineHostDied, EngineHostNotStarted
from workers.jobs.memory_deaths import EngineHostOutOfMemory

CRASHES = frozenset(
    (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)
)
MAX_LAYER = 500  # characters: a layer that fuses many is named after all of them
# What a verbose log says as it begins with something. TensorRT names the node that it parses, then the layer whose
# kernels it times. onnxruntime names the pass over the graph.
BEGINNINGS = (
    re.compile(r"Timing Runner: (.+?)(?: \(\w+(?:\[\w+\])?\))?$"),
    re.compile(r"Computing costs for (.+)$"),
    re.compile(r"Parsing node: (.+)$"),
    re.compile(r"Applying graph transformer (\S+) on step"),
)
# What it says once it is done with what it has named: with the nodes to parse, or with the whole compilation.
ENDS = re.compile(r"^Original: \d+ layers|Engine generation completed|Session successfully initialized")


@dataclass(frozen=True, slots=True)
class Crash:
    """The second crash of a compiler on the same work: how the host ended, and what was being compiled if it is known.

    `layer` is in the compiler's own words: a layer, a node, or a pass over the graph. Clients may see both.
    """

    detail: str
    layer: str | None

    @classmethod
    def of(cls, detail: str, lines: Sequence[str]) -> Self:
        """Return the crash of a host of whose death `detail` tells, after it had written these lines."""
        layer = layer_in(lines)
        return cls(public(detail.partition(LAST_LINE)[0]), None if layer is None else public(layer[:MAX_LAYER]))


def is_crash(died: EngineHostDied) -> bool:
    """Tell whether a host crashed by itself. One that was killed, or that had no memory, may have done no wrong."""
    if isinstance(died, EngineHostNotStarted | EngineHostOutOfMemory) or died.status is None:
        return False
    return died.status >= 0 or -died.status in CRASHES


def layer_in(lines: Sequence[str]) -> str | None:
    """Return what a compiler was at when these lines ended; None if they do not tell."""
    for line in reversed(lines):
        if ENDS.search(line):
            return None
        for beginning in BEGINNINGS:
            found = beginning.search(line)
            if found:
                return found[1]
    return None
