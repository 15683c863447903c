"""The backends `tensorrt` and `tensorrt_rtx`: one adapter for TensorRT 8.6 to 11 and TensorRT-RTX."""
