"""Talking to registries (OCI distribution-spec 1.1): hosts and mirrors, credentials, tokens, manifests, ranges of blobs.

Two HTTP clients, one policy: httpx for what is small, `http.client` with our buffers for blobs (measured: httpx costs three
times the CPU for bulk bytes); addresses, proxies, TLS, tokens and the classification of failures are shared.
Blocking; used from threads.
"""
