"""poetry's version constraints as those of PEP 440, and as markers.

https://python-poetry.org/docs/dependency-specification/: `^1.2` allows what leaves the first number
that is not zero alone, `~1.2` what leaves the second one alone.
"""

from __future__ import annotations

import re

from packaging.specifiers import InvalidSpecifier, SpecifierSet

PART = re.compile(r"(?P<operator>\^|~=|~|===|==|!=|>=|<=|>|<|=|)\s*(?P<version>[\w.*+!-]+)[\s,]*")
ALTERNATIVES = re.compile(r"\s*\|\|?\s*")


def pep440(constraint: str) -> str:
    """Return a constraint as PEP 440 writes it; empty for any version.

    Raises ValueError for alternatives (`||`), which PEP 440 does not have, and for what is not a
    constraint.
    """
    text = constraint.strip()
    if ALTERNATIVES.search(text):
        message = "alternatives cannot be said in one requirement"
        raise ValueError(message)
    parts, end = [], 0
    while end < len(text):
        found = PART.match(text, end)
        if not found:
            message = f"{text[end:]!r} is not a version"
            raise ValueError(message)
        parts += _clauses(found["operator"], found["version"])
        end = found.end()
    try:
        return ",".join(str(item) for item in map(SpecifierSet, parts) if str(item))
    except InvalidSpecifier as error:
        message = f"{constraint!r} is not a version"
        raise ValueError(message) from error


def python_marker(constraint: str) -> str:
    """Return the marker of a constraint on Python, which may have alternatives."""
    ways = [_all_of(pep440(one)) for one in ALTERNATIVES.split(constraint.strip())]
    # Where one way allows every python, so do all together.
    if len(ways) == 1 or "" in ways:
        return "" if "" in ways else ways[0]
    return " or ".join(f"({one})" if " and " in one else one for one in ways)


def _all_of(specifiers: str) -> str:
    clauses = []
    for item in sorted(SpecifierSet(specifiers), key=str):
        # `python_version` has two numbers only (PEP 508): of `3.8.1` it would know 3.8.
        is_full = item.version.removesuffix(".*").count(".") > 1
        name = "python_full_version" if is_full else "python_version"
        clauses.append(f'{name} {item.operator} "{item.version}"')
    return " and ".join(clauses)


def _clauses(operator: str, version: str) -> list[str]:
    if version == "*":
        return [""]
    if operator not in ("^", "~"):
        return [f"{'==' if operator in ('', '=') else operator}{version}"]
    numbers = [int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
    kept = min(len(numbers), 2) - 1 if operator == "~" else _first_of_weight(numbers)
    # The first version that is not allowed: what is kept stays, the next number goes up.
    above = [*numbers[:kept], numbers[kept] + 1]
    return [f">={version}", f"<{'.'.join(map(str, above))}"]


def _first_of_weight(numbers: list[int]) -> int:
    """Return where the first number stands that is not zero, else the last one."""
    weights = (place for place, number in enumerate(numbers) if number)
    return next(weights, len(numbers) - 1)
