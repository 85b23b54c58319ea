"""The stage that locks: the conda half by rattler, the pip half by uv."""
