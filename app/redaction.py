"""What a text must not tell: secrets in any log or answer, and places of this machine in an answer.

Texts of libraries hold what they were given: a URL with its password, the path of a file. So a text is cleaned where it
leaves the service, whoever wrote it: each log line, each error, each event of a job.
"""

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:  # pydantic takes a tenth of a second, which a command's help does not
    from app.settings import Settings

HIDDEN = "***"
SHORTEST = 6  # characters of a secret that is hidden wherever it stands; a shorter one is hidden in its URL only
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|_KEY$|CREDENTIAL|SIGNATURE", re.IGNORECASE)
IN_URL = re.compile(r"(?P<start>[a-z][a-z0-9+.-]*://[^:/?#\s@'\"]*):[^@\s'\"]+@", re.IGNORECASE)
AUTHORITY = re.compile(r"://[^:@/]*:(?P<password>.+)@")
SYSTEM = ("/etc", "/home", "/proc", "/root", "/sys", "/tmp", "/usr")  # noqa: S108 - to be hidden, not used
REST = r"(?![\w-])(?P<rest>(?:/[^\s'\"<>|:;,)\]}]*)?)"

_secrets: set[str] = set()
_places: set[str] = set()
_patterns: dict[str, re.Pattern[str] | None] = {}


def learn(settings: "Settings") -> None:
    """Hide from now on what these settings and the environment hold as secrets, and where this service lies."""
    _secrets.update(_secrets_of(settings), _secrets_of_environment())
    _places.update(_places_of(settings), _places_of_process())
    _patterns.clear()


def without_secrets(text: str) -> str:
    """Return the text with each password in a URL and each known secret hidden."""
    if "://" in text:
        text = IN_URL.sub(rf"\g<start>:{HIDDEN}@", text)
    pattern = _pattern("secrets", _secrets, "")
    return text if pattern is None else pattern.sub(HIDDEN, text)


def public(text: str) -> str:
    """Return the text as a client may see it: without secrets, and of a path on this machine only the last part."""
    text = without_secrets(text)
    if "/" not in text:
        return text
    pattern = _pattern("places", _places or _places_of_process(), REST)
    return text if pattern is None else pattern.sub(_last_part, text)


def public_json(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a JSON value with each of its texts as a client may see it; names of members stay."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, dict):
        return {name: public_json(item) for name, item in value.items()}
    return [public_json(item) for item in value] if isinstance(value, list | tuple) else value


def hide_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide the secrets of a log line: a processor for structlog, to be the last but the renderer."""
    for name, value in event.items():
        if not name.startswith("_"):  # structlog's own
            event[name] = _clean(value)
    return event


def hide_in_tracebacks() -> None:
    """Have the traceback of an exception that nothing catches printed without secrets."""
    sys.excepthook = _print_traceback


def _clean(value: Any) -> Any:  # noqa: ANN401 - any value of a log line
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {name: _clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    text = value if isinstance(value, str) else repr(value)
    clean = without_secrets(text)
    return value if clean == text else clean


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


def _last_part(found: re.Match[str]) -> str:
    return "…/" + found["rest"].rstrip("/").rpartition("/")[2]


def _pattern(name: str, words: Iterable[str], rest: str) -> re.Pattern[str] | None:
    if name not in _patterns:
        longest_first = sorted(filter(None, words), key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first))
        before = r"(?<![\w.~-])" if rest else ""
        _patterns[name] = re.compile(f"{before}(?:{either}){rest}") if either else None
    return _patterns[name]


def _secrets_of(settings: "Settings") -> set[str]:
    found = {settings.signing_key}
    for url in (settings.database_url, settings.broker_url, settings.store_url):
        found |= _secrets_of_url(url)
    return {secret for secret in found if len(secret) >= SHORTEST}


def _secrets_of_url(url: str) -> set[str]:
    """Return the password of a URL as it is written and as it is meant, and its parts if the URL is malformed."""
    password = found["password"] if (found := AUTHORITY.search(url)) else ""
    query = {value for name, value in parse_qsl(urlsplit(url).query) if SECRET_NAME.search(name)}
    return {password, unquote(password), *re.split(r"[/:@?#]", password), *query}


def _secrets_of_environment() -> set[str]:
    return {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}


def _places_of(settings: "Settings") -> set[str]:
    paths: list[str | Path | None] = [settings.data_dir, settings.cache_dir, urlsplit(settings.database).path[1:]]
    if settings.store_url.startswith("file:"):
        paths.append(unquote(urlsplit(settings.store_url).path))
    return _spelled(path for path in paths if path)


def _places_of_process() -> set[str]:
    paths: list[str | Path] = [sys.prefix, sys.base_prefix, tempfile.gettempdir(), Path(__file__).parents[1], *sys.path]
    return _spelled(path for path in paths if path) | set(SYSTEM)


def _spelled(paths: Iterable[str | Path]) -> set[str]:
    """Return absolute paths with and without their links resolved, but not the root."""
    absolute = {Path(path).absolute() for path in paths}
    return {str(path) for path in absolute | {path.resolve() for path in absolute} if len(path.parts) > 1}
