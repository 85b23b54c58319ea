"""Numbers as people read them in messages: counts with their noun, and sizes."""

from __future__ import annotations


def plural(number: int, one: str, many: str = "") -> str:
    """Return `1 package`, `1,234 packages`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def human_bytes(count: float) -> str:
    """Format bytes for people: `4.31 GB` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
