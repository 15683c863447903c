"""Graphs made from a Hugging Face config."""
