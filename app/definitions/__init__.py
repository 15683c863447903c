"""Definitions: immutable weightless ONNX graphs."""
