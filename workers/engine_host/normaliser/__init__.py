"""Rewrites a graph into one that says the same with fewer words, for a compiler that takes less than ONNX allows."""
