"""The demonstration: a model, a registry to serve it, and the walk through both."""
