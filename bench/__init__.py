"""Benchmarks that print ratios against a peer of the same run: `make bench`, or `python -m bench NAME…` for some of them."""
