"""Models, and aliases that name their engines."""
