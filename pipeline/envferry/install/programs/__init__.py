"""The programs of an environment: started, checked, offered to others, and found where they run."""
