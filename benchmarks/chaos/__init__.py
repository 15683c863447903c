"""Faults put into a running service, and what became of its jobs: `python -m benchmarks.chaos --help`."""
