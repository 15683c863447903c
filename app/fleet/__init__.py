"""The workers alive now."""
