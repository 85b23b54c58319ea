"""The stage that builds, and the cache of downloads it builds from."""
