"""Marks that keep a released environment from accidents.

conda's is CEP 22 (`conda-meta/frozen`, JSON with a message), pip's PEP 668 (EXTERNALLY-MANAGED in
the directory of the standard library).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from envferry.archive.index import FileEntry
from envferry.archive.members import GENERATED, Member

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STANDARD_LIBRARY = re.compile(r"lib/python3\.\d+")
CONDA_MARK = "conda-meta/frozen"
PIP_MARK = "EXTERNALLY-MANAGED"


def frozen_members(files: Sequence[FileEntry], name: str) -> Iterator[Member]:
    """Yield the marks for an environment of these files."""
    message = (
        f"{name} was released by envferry and is not changed in place: change its spec "
        f"(specs/{name}.yml), release it, and install the new version."
    )
    yield mark(CONDA_MARK, json.dumps({"message": message}, indent=1) + "\n")
    for entry in files:
        if entry.type == "directory" and STANDARD_LIBRARY.fullmatch(entry.path):
            # The folder of the standard library is where installers look for it (PEP 668).
            yield mark(f"{entry.path}/{PIP_MARK}", f"[externally-managed]\nError={message}\n")


def mark(path: str, text: str) -> Member:
    """Return a generated text file."""
    content = text.encode()
    return Member(entry=FileEntry(path=path, size=len(content)), owner=GENERATED, source=content)
