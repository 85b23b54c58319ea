"""A host that follows a tag: polls, waits for the right moment, installs."""
