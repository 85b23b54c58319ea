"""From requirements to packages: the conda half by rattler, the pip half by uv."""
