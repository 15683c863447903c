"""Types of fields that the requests of several slices share."""

from typing import Annotated

from pydantic import Field

# The upper end is what a JSON number holds exactly; every integer column of both databases holds more.
Number = Annotated[int, Field(ge=1, lt=2**53)]
