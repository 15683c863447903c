"""Celery workers that bind, compile, refit and run."""
