"""The whole service on one machine: API, worker and broker as supervised children of one process."""
