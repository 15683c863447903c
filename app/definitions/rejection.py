"""How the child says that a request cannot become a definition."""

from collections.abc import Sequence

from app.errors import FieldError


class Rejected(Exception):
    """The file or the config cannot become a definition; `detail` names the remedy.

    `code` is answered to the client; `errors` point into the request body.
    """

    def __init__(self, code: str, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
