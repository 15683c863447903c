"""Types of fields that the requests of several slices share."""

from typing import Annotated

from pydantic import Field

# A JSON number holds integers up to 2**53 exactly. Every integer column of both databases holds more.
Number = Annotated[int, Field(ge=1, lt=2**53)]
