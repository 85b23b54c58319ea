"""A text that is not repeated in logs and errors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    """A password, a token or a key."""

    text: str = field(repr=False)

    def reveal(self) -> str:
        """Return the text, where it is used."""
        return self.text

    def __str__(self) -> str:
        return "**redacted**"
