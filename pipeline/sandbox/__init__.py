"""Throwaway containers without network."""
