"""A registry of OCI images as a store: values are blobs, keys are tags (docs/oci.md)."""
