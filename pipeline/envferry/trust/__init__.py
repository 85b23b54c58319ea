"""Who made an artifact, out of what, and what a host accepts: keys, attestations, signed tags."""
