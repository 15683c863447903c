"""Which checkpoint tensors feed which parameter (pure)."""
