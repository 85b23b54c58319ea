"""What in a spec causes trouble later."""
