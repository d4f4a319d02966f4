"""The cache on local disk: blobs as sparse files with an index of their blocks, and small objects by name.

One process writes (the fetcher); any number of readers see presence through the shared map of an index.
"""
