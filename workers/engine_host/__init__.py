"""The process that owns a device: every compile, refit and run happens in it.

`workers.channel.host.EngineHost` is the worker's side. The other side, `workers.engine_host.child`, is spawned and
never forked, because CUDA does not survive a fork. Native compilers do not stop when asked to, and they may crash their
process. In a process of their own, the worker can kill it and spawn another. Nothing is imported here, because the
child does not need the worker's side.
"""
