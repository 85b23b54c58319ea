"""What a source package is made into a wheel with, pinned: wheels by URL and hash."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.errors import SpecError
from envferry.lock.pip.pip_half import resolve_pip
from envferry.models import BuildRequirements

if TYPE_CHECKING:
    from envferry.lock.pip.pip_request import PipRequest

INDEX_OPTION = re.compile(
    r"(-i|-f|--index-url|--extra-index-url|--find-links|--no-index|--trusted-host)\b.*"
)


def resolve_build_requirements(
    name: str, lines: tuple[str, ...], request: PipRequest
) -> BuildRequirements:
    """Resolve the `build-system.requires` of package `name` for the python of `request`.

    From the indexes of `request`, apart from what the environment holds: nothing of one gets into
    the other. Raises SpecError when they have no solution in wheels.
    """
    # Of the spec only where packages come from: its requirements are not for builds.
    options = tuple(line for line in request.requirements if INDEX_OPTION.fullmatch(line.strip()))
    alone = replace(
        request, requirements=(*options, *lines), constraints=(), excluded=(), provided=()
    )
    try:
        wheels = resolve_pip(alone)
    except SpecError as error:
        message = f"the build requirements of {name} are not available: {error.message}"
        hint = f"offer a wheel of {name} itself, in an index or a folder (--find-links)"
        raise SpecError(message, hint=hint) from error
    sources = [item.name for item in wheels if item.kind != "wheel"]
    if sources:
        message = f"{name} is built with packages that have no wheel: {', '.join(sources)}"
        raise SpecError(message, hint=f"build wheels of {', '.join(sources)}, or of {name} itself")
    return BuildRequirements(name=name, platform=request.platform, wheels=wheels)
