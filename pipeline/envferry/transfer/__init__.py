"""Artifacts and tags from one registry to another: mirrors, disks, deltas."""
