"""Builds on many machines: what runs on a cluster's workers, and who drives and checks them."""
