"""The process that owns a device: every compile, refit and run happens in it.

`EngineHost` is the worker's side. The other side, `workers.engine_host.child`, is spawned, never forked, since
CUDA does not survive a fork. Native compilers do not stop when asked to and may take the process down; here
the worker kills it and spawns another.
"""

from workers.engine_host.host import EngineHost, EngineHostDied

__all__ = ["EngineHost", "EngineHostDied"]
