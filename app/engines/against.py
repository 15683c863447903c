"""The ways to check a new engine before it is published."""

from typing import Literal

# reference: compare its outputs with an independent computation of the definition. rebuild: compare them with those of
# an engine compiled anew. finite: check only that all outputs are finite. none: do not check it.
Against = Literal["reference", "rebuild", "finite", "none"]
# What becomes of an engine whose definition cannot be computed on the inputs that are there.
IfImpossible = Literal["fail", "publish"]
# auto: builds measure for some seconds which weights a verification sees, refits take over what is known of the engine
# they start from. full: measured to the end. none: not measured.
Coverage = Literal["auto", "full", "none"]
