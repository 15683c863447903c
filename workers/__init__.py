"""Workers that bind, compile, refit and run."""
