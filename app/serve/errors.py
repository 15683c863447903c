"""The error of a command that cannot start or go on."""

from app.redaction import without_secrets


class CannotStart(Exception):
    """Ends a command. The message names the remedy; `code` is a stable word for scripts."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(without_secrets(detail))
        self.code = code
