"""The stage that installs, and what follows: verify, roll back, remove."""
