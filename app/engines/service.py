"""Engines, for the other slices and the workers."""

from app.engines.manifest import engine_manifest
from app.engines.publish import publish_engine, publish_plan
from app.engines.queries import DETAIL, Served, count_changed_tensors, find_equal, get_engine, list_engines, load_family
from app.engines.requests import (
    materialise,
    request_benchmark,
    request_build,
    request_engine,
    request_materialise,
    request_refit,
    request_run,
    request_verify,
)
from app.engines.timing_caches import find_timing_cache, replace_timing_cache

__all__ = [
    "DETAIL",
    "Served",
    "count_changed_tensors",
    "engine_manifest",
    "find_equal",
    "find_timing_cache",
    "get_engine",
    "list_engines",
    "load_family",
    "materialise",
    "publish_engine",
    "publish_plan",
    "replace_timing_cache",
    "request_benchmark",
    "request_build",
    "request_engine",
    "request_materialise",
    "request_refit",
    "request_run",
    "request_verify",
]
