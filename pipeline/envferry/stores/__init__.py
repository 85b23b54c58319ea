"""Dumb keys and bytes: directory and S3."""
