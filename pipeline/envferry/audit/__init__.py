"""What is known to be wrong with the packages of an environment: advisories, offline."""
