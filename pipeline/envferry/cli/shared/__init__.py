"""What several commands share: declarations, options, output, tables and hints."""
