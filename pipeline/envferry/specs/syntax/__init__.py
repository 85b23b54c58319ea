"""What specs and foreign files are written in: YAML, TOML, conda and pip lines, markers."""
