"""What conda packages say they need, as locks write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def locked_needs(lines: Iterable[str]) -> dict[str, str]:
    """Return version constraints by name, as conda-lock writes them: without build strings."""
    found: dict[str, set[str]] = {}
    for line in lines:
        name, _, rest = line.strip().partition("[")[0].partition(" ")
        found.setdefault(name, set()).update(_constraint(word) for word in rest.split()[:1])
    return {name: ",".join(sorted(versions - {"*"})) for name, versions in found.items()}


def _constraint(text: str) -> str:
    """Spell `=1.2` as conda does: `1.2.*`."""
    # `=1.2`, `=1.2*` and `=1.2.*` mean the same.
    is_fuzzy = text.startswith("=") and not text.startswith("==")
    return f"{text.lstrip('=').removesuffix('.*').removesuffix('*')}.*" if is_fuzzy else text
