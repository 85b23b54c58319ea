"""Read-only pages over a registry, each with a JSON twin; nothing here writes to a registry."""
