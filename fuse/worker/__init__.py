"""The worker: one process without privileges that serves one FUSE file system. trio and pyfuse3 live here only."""
