"""Types of fields that name an artifact."""

from typing import Annotated

from pydantic import StringConstraints

from app.artifacts.digest import DIGEST

Digest = Annotated[str, StringConstraints(pattern=f"^{DIGEST.pattern}$")]
