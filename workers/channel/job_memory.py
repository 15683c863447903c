"""How much of the machine's memory a request may take.

The engine host has the kernel hold it to that where it can (`workers/engine_host/memory_limit.py`), and the worker
watches it in any case (`memory_watch.py`).
"""

GIB = 1 << 30
LEAST_BYTES = 4 * GIB  # for a graph and what it computes, whatever the weights
LEAST_WHOLE = 2 * GIB  # what libraries reserve counts as well, such as the stacks of threads
COPIES = 6  # of the weights: transformed, packed for kernels, widened by the reference, and as much again
SHARE = 8  # of the machine's memory, one part is for what a graph computes, and one is left to others
GPU_TIMES = 2  # TensorRT took 3.6 GB and 5.8 times the weights, and the reference may stand beside it
CODE = "too_much_memory"


def job_bytes(weights: int, machine: int, *, gpu: bool) -> int:
    """Return the bytes that a request with so many bytes of weights may take if no setting says so."""
    return (GPU_TIMES if gpu else 1) * (max(LEAST_BYTES, machine // SHARE) + COPIES * weights)


def host_bytes(machine: int) -> int:
    """Return the bytes that a whole engine host may take of a machine's memory."""
    return max(machine - machine // SHARE, LEAST_WHOLE)
