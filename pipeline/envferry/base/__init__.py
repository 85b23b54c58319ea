"""Shared foundations: atomic files, direct I/O, worker threads, retries, limits."""
