"""The pip half of a lock: requirement lines, uv, wheels and who published them."""
