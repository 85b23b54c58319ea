"""What a host offers to an environment, and what it says of those that it has."""
