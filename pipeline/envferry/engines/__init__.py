"""Throwaway containers without network: bubblewrap, docker, podman."""
