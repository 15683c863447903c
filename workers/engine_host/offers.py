"""Opens the installed backends, and says what each one offers or why it cannot be used."""

import logging
import shlex
from collections.abc import Callable
from typing import Any

from app.backends import backend_entry, installed_backends
from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Backend

log = logging.getLogger(__name__)


def offers(device: str, opened: Callable[[str], Backend]) -> dict[str, dict[str, Any]]:
    """Return the backends installed for `device` in the form of `Hello.backends`; `opened` opens one by its name.

    If one backend does not open, the others are offered all the same.
    """
    return {name: _offer(name, version, opened) for name, version in installed_backends(device).items()}


def _offer(name: str, version: str, opened: Callable[[str], Backend]) -> dict[str, Any]:
    try:
        offered = opened(name).offered
    except Exception as error:
        log.warning("%s %s cannot be used", name, version, exc_info=not isinstance(error, BackendError))
        return {"version": version, "unavailable": _reason(name, version, error)}
    return {
        "version": offered.version,
        "makes": list(offered.makes),
        "loads": list(offered.loads),
        "capabilities": dict(offered.capabilities),
    }


def _reason(name: str, version: str, error: Exception) -> str:
    if isinstance(error, BackendError):
        return error.detail
    if isinstance(error, ImportError):
        return (
            f"{name} {version} is installed but cannot be imported: {error}. "
            f"Reinstall it with all its libraries{_reinstalling(name)}."
        )
    return (
        f"{name} {version} does not start ({type(error).__name__}: {error}). "
        "The worker's log has the traceback; install a version that runs on this machine."
    )


def _reinstalling(name: str) -> str:
    """Return the command in brackets, or "" if the backend's own entry cannot be imported."""
    try:
        requirement = backend_entry(name).requirement
    except ImportError:
        return ""
    return f" (pip install --force-reinstall {shlex.quote(requirement)})"
