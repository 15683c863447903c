"""Names that move between engines."""
