"""The files of an installation: placed, shared, moved, mounted, compared with their archive."""
