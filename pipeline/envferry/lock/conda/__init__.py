"""The conda half of a lock: channels, their indexes, solvers."""
