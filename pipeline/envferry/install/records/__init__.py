"""What a host remembers: its installations, their events, results and shared files."""
