"""The privileged side: devices, mounts and binds, and the processes (workers, fetcher, keeper) that serve them.

Threads; parses nothing that a registry or a pod wrote, except references.
"""
