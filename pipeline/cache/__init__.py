"""The download cache: what came from channels and indexes, by hash."""
