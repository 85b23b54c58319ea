"""Create a local conda channel from installed interpreters and wheels."""
