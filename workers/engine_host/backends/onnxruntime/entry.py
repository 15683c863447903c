"""The entry of the backend `onnxruntime`, which is read before onnxruntime is imported."""

from app.backends import BackendEntry

ONNXRUNTIME = BackendEntry(
    package="onnxruntime",
    distributions=("onnxruntime", "onnxruntime-gpu"),
    devices=("cpu",),
    factory="workers.engine_host.backends.onnxruntime.backend:open_backend",
    requirement="onnxruntime",
    preflight="workers.engine_host.backends.onnxruntime.preflight:check_onnxruntime",
)
