"""Engines, for the other slices and the workers."""

from app.engines.catalogue import DETAIL, find_equal, get_engine, list_engines, load_family
from app.engines.changes import count_changed_tensors
from app.engines.manifest import engine_manifest
from app.engines.publish import publish_engine
from app.engines.requests import request_build, request_engine, request_refit, request_run, request_verify

__all__ = [
    "DETAIL",
    "count_changed_tensors",
    "engine_manifest",
    "find_equal",
    "get_engine",
    "list_engines",
    "load_family",
    "publish_engine",
    "request_build",
    "request_engine",
    "request_refit",
    "request_run",
    "request_verify",
]
