"""The fetcher: the only process that talks to registries and the only writer of the cache.

Threads around blocking sockets; started and reached through `protocol`'s messages.
"""
