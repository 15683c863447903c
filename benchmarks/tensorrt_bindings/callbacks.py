"""The methods of our classes that TensorRT calls, by the class of its own that they derive from."""

from typing import Final

CALLBACKS: Final = {
    "ILogger": ("log",),
    "IOutputAllocator": ("reallocate_output", "reallocate_output_async", "notify_shape"),
    "IProfiler": ("report_layer_time",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
}
