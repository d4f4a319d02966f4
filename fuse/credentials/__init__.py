"""Whose credentials are shown to a registry, and where they come from: the privileged side's business.

What a request brings (`given`), docker's configuration and Kubernetes secrets (`dockerconfig`), kubelet's credential providers
(`providerconfig`, `providers`), and in which order they count (`ladder`). The fetcher gets the result as values, never a file, a
program or a token of a pod. Nothing here speaks with a registry, or writes a secret anywhere.
"""
