"""envferry: carry conda+pip training environments across an air gap."""

__version__ = "0.2.0"
