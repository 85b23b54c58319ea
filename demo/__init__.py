"""Whole voyages, played on one machine."""
