"""What runs inside the container of a build."""
