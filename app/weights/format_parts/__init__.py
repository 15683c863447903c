"""What several checkpoint formats are made of."""
