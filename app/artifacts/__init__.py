"""Bytes kept by SHA-256 digest."""
