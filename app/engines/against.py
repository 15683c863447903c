"""What a new engine is compared with before it is published."""

from typing import Literal

# reference: an independent computation of the definition. rebuild: an engine compiled anew. finite: only that all
# outputs are finite. none: no check.
Against = Literal["reference", "rebuild", "finite", "none"]
