"""Files of other tools, read into specs and locks."""
