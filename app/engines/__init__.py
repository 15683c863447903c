"""Engines: immutable results of a build or a refit."""
