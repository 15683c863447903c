"""What is known of the toy before anything else of it is imported."""

from app.backends import BackendEntry

ABACUS = BackendEntry(
    package="numpy",
    distributions=("numpy",),
    devices=("cpu",),
    factory="tests.adding.toy_backend:open_backend",
    requirement="numpy",
    preflight="tests.adding.toy_backend:check_abacus",
)
