"""What the demo and the tests need beside envferry itself."""
