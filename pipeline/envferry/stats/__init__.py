"""How often artifacts are fetched, by the access logs of what serves a registry."""
