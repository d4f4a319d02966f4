"""The data plane: what runs without privileges (worker, fetcher), and what starts it (mounting).

Nothing here imports `csi` or `weightless`; docs/ARCHITECTURE.md draws the processes and the direction of imports.
"""
