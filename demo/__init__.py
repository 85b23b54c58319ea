"""Whole runs of the pipeline, from spec to installed environment, on one machine."""
