"""Ours and the others', side by side in one run."""
