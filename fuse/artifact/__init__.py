"""What an artifact says it holds: references, digests, manifests and archives, turned into a tree of files.

Pure but for the ranged reads that it is handed; knows no HTTP, no cache and no kernel.
"""
