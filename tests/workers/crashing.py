"""Engine hosts in which onnxruntime crashes: a module that Python imports as it starts sees to that."""

import os
from pathlib import Path

import pytest

CRASHES_AT = "MatMulAddFusion"  # the pass over the graph at which a verbose log ends
SITECUSTOMIZE = f"""
import os, signal, sys

if "workers.engine_host.child" in " ".join(sys.orig_argv):
    import onnxruntime

    ends, log = os.pipe()
    if os.fork() == 0:
        os.dup2(ends, 0)
        os.closerange(3, 1024)  # the worker's socket among them: it ends with the host
        for line in os.fdopen(0, "rb"):
            os.write(2, line)
            if b"Applying graph transformer {CRASHES_AT}" in line:
                os.kill(os.getppid(), signal.SIGSEGV)
                break
        os._exit(0)
    os.dup2(log, 2)
    create = onnxruntime.InferenceSession.__init__

    def crash(self, model, options, **others):
        create(self, model, options, **others)
        if options.log_severity_level == 0:
            signal.pause()  # the log has said enough by now
        os.kill(os.getpid(), signal.SIGSEGV)

    onnxruntime.InferenceSession.__init__ = crash
"""


def crash_hosts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every engine host that is started from now on crash as soon as it compiles, until the patch is undone.

    Without a verbose log it crashes once onnxruntime has read the graph, and with one at CRASHES_AT.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
