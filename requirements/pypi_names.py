"""Write the table of conda packages whose distributions on Python indexes have other names.

    .venv/bin/python requirements/pypi_names.py MAPPING...

Each MAPPING is a `compressed_mapping.json` of https://github.com/prefix-dev/parselmouth
(BSD-3-Clause; its licence lies beside the table), the most important channel first: what is in the
packages of a channel, by their own dist-info. `pypi_names_by_hand.json` has the last word:

add      wins over all mappings; several names are one project that writes the same files under each
drop     conda packages that bring no distribution of another name, with the reason
renamed  conda packages whose distribution really has a name without likeness, though the channel
         has a package of that name, too

Without the last, such an entry is a package that brings a copy of another project along (flit-core
has tomli). If that copy counted as the project, the project itself would not be locked.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

BY_HAND = Path(__file__).with_name("pypi_names_by_hand.json")
TABLE = Path(__file__).parent.parent / "pipeline/envferry/lock/pypi_names.json"

Mapping = dict[str, list[str] | str | None]


def differing_names(mapping: Mapping, renamed: list[str]) -> dict[str, list[str]]:
    """Return what a mapping says of conda packages whose distributions have other names."""
    found: dict[str, list[str]] = {}
    brought = {conda: _listed(several) for conda, several in mapping.items()}
    names = {conda: str(canonicalize_name(conda)) for conda in brought}
    own = {names[conda] for conda, listed in brought.items() if names[conda] in listed}
    for conda, listed in brought.items():
        if not listed or names[conda] in listed:
            continue
        copies = [name for name in listed if name in own and not _alike(conda, name)]
        if conda in renamed or not copies:
            found[conda.lower()] = listed
    return found


def _listed(names: list[str] | str | None) -> list[str]:
    several = [names] if isinstance(names, str) else names or []
    return sorted({str(canonicalize_name(name)) for name in several})


def _alike(left: str, right: str) -> bool:
    """Whether the letters of one name are within the other."""
    left, right = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (left, right))
    return left in right or right in left


def main(paths: list[str]) -> None:
    """Write the table from the mappings in these files."""
    by_hand = json.loads(BY_HAND.read_bytes())
    table: dict[str, list[str]] = {}
    for path in reversed(paths):
        table |= differing_names(json.loads(Path(path).read_bytes()), by_hand["renamed"])
    table |= by_hand["add"]
    rows = [
        f" {json.dumps(name)}: {json.dumps(table[name])}"
        for name in sorted(table)
        if name not in by_hand["drop"]
    ]
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
