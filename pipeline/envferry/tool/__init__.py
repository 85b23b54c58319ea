"""envferry as one executable file, with its own Python, for hosts that have none."""
