"""What to fetch before it is asked for: streams that are seen in reads, and the order in which loaders read. Pure."""
