"""Requirements that name a path by their project's folder: PDM and hatch write URLs like that.

https://pdm-project.org/latest/usage/dependency/#local-dependencies and
https://hatch.pypa.io/latest/config/context/.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from packaging.requirements import InvalidRequirement, Requirement

from envferry.specs.syntax.pip_lines import HASH_FRAGMENT, is_path
from envferry.specs.syntax.requirement_lines import relative

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_URL = re.compile(
    r"(?:file:/*)?(?:\$\{PROJECT_ROOT\}|\{root(?P<up>(?::parent)*)(?::uri|:real)?\})"
    r"(?P<path>(?:/[^#]*)?)(?P<fragment>(?:#.*)?)"
)
SUBDIRECTORY = re.compile(r"[#&]subdirectory=(?P<folder>[^&]+)")


def project_line(line: str, folder: Path, base: Path) -> str:
    """Return a requirement of the project in `folder`; what lies there is a path from `base`.

    Other lines, and those that are none, stay as they are.
    """
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return line
    found = FOLDER_URL.fullmatch(wanted.url or "")
    if not found:
        return line
    target = folder.absolute().joinpath(*[".."] * (found["up"] or "").count(":parent"))
    target = target.joinpath(unquote(found["path"].lstrip("/")))
    inner = SUBDIRECTORY.search(found["fragment"])
    place = relative(target / inner["folder"] if inner else target, base)
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    asked = f"{place}{extras}"
    if " " in place or not is_path(place):  # pip has no other form for these than a URL
        asked = f"{wanted.name}{extras} @ {(base.absolute() / place).resolve().as_uri()}"
    marker = f" ; {wanted.marker}" if wanted.marker else ""
    digest = HASH_FRAGMENT.search(found["fragment"])
    demanded = f" --hash=sha256:{digest['digest'].lower()}" if digest else ""
    return f"{asked}{marker}{demanded}"
