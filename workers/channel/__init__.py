"""The wall between the worker and its engine host, and all that passes through it."""
