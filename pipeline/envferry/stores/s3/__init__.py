"""A registry in object storage: S3, or a server that speaks its protocol."""
