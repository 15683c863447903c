"""Types of fields that the requests of several slices share."""

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

# A JSON number holds integers up to 2**53 exactly. Every integer column of both databases holds more.
Number = Annotated[int, Field(ge=1, lt=2**53)]


def at_most(count: int) -> BeforeValidator:
    """Return the check of a dict field that has a `max_length`: pydantic alone looks at every member first."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > count:
            raise PydanticCustomError("too_long", "Dictionary should have at most {count} items", {"count": count})
        return value

    return BeforeValidator(check)
