"""What an artifact looks like as a file system: the inode table, and the tree that lookups and reads ask.

Pure: no kernel, no network, no clock.
"""
