"""Queued work, its lease and its events."""
