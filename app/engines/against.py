"""The ways to check a new engine before it is published."""

from typing import Literal

# reference: compare its outputs with an independent computation of the definition. rebuild: compare them with those of
# an engine compiled anew. finite: check only that all outputs are finite. none: do not check it.
Against = Literal["reference", "rebuild", "finite", "none"]
