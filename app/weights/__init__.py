"""Weight versions: immutable sets of named tensors."""
