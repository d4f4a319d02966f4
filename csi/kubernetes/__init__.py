"""What the node plugin says to Kubernetes' API server, where it may: events on pods, and a taint that goes.

Nothing waits for it, and nothing fails without it.
"""
