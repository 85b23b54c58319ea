"""What all parts stand on: whole files, direct I/O, worker threads."""
