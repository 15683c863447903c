"""The process that owns a device: every compile, refit and run happens in it.

`host.EngineHost` is the worker's side. The other side, `workers.engine_host.child`, is spawned, never forked, since
CUDA does not survive a fork. Native compilers do not stop when asked to and may take the process down; here
the worker kills it and spawns another. Nothing is imported here: the child has no use for the worker's side.
"""
