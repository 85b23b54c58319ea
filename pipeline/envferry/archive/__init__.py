"""The archive of schema 1: layout, writer, reader, relocation."""
