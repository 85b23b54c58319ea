"""A conda channel of one's own, made out of interpreters and wheels that one has."""
