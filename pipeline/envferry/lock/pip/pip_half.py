"""The pip half of a lock: requirement lines in, exactly one file for each package out, by uv."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.lock.pip.pip_entries import locked_package
from envferry.lock.pip.uv import compile_lines
from envferry.lock.pip.wheel_choice import wheel_ranks
from envferry.redaction import without_login
from envferry.specs.syntax.markers import target_environment
from envferry.specs.syntax.pip_lines import (
    HASH_FRAGMENT,
    is_path,
    plain_requirement,
    requirement_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.lock.pip.pip_request import PipRequest
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

# pip takes a short option and its value in one word as well: `-rFILE`.
PATH_OPTIONS = re.compile(
    r"(?P<option>-[crf]|--(?:constraints?|requirements?|find-links))(?P<gap>\s+|=|(?<=-[crf]))(?P<path>.+)"
)


class ResolvedPip(msgspec.Struct, frozen=True, kw_only=True):
    """What requirements were resolved to."""

    packages: tuple[LockedPackage, ...] = ()
    """Sorted by name."""
    indexes: Mapping[str, str] = msgspec.field(default_factory=dict)
    """The index that each comes from, by name, if one is known; without logins."""


def resolve_pip(request: PipRequest) -> tuple[LockedPackage, ...]:
    """Resolve requirements to one file or commit for each package, as `resolve_with_indexes`."""
    return resolve_with_indexes(request).packages


def resolve_with_indexes(request: PipRequest) -> ResolvedPip:
    """Resolve requirements to one file or commit for each package.

    A wheel wherever there is one; else a source distribution, with a warning.
    Raises SpecError when they cannot be satisfied, StoreError when an index cannot be reached.
    """
    lines = tuple(_anchor(line, request) for line in request.requirements)
    if not any(_asks_for_packages(line) for line in lines):
        return ResolvedPip()
    _check_provided(request)
    ranks = wheel_ranks(request.target)
    with tempfile.TemporaryDirectory(prefix="envferry-pip-") as scratch:
        answer = compile_lines(request, lines, Path(scratch))
    hashes = _demanded_hashes(lines)
    packages = []
    for entry in answer.entries:
        package = locked_package(entry, request, ranks, hashes.get(entry["name"], frozenset()))
        # uv says which package needs which, without versions.
        needs = dict.fromkeys(answer.needs.get(package.name, ()), "*")
        packages.append(msgspec.structs.replace(package, dependencies=needs))
        if package.kind != "wheel":
            log.warning("%s has no wheel: the build will make one from its source", package.name)
    ordered = tuple(sorted(packages, key=lambda package: package.name))
    return ResolvedPip(packages=ordered, indexes=answer.indexes)


def _demanded_hashes(lines: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Return the SHA-256 hashes that requirement lines demand by `--hash`, by package.

    Lines of one package with different markers pin different versions, each with its own files.
    """
    demanded: dict[str, frozenset[str]] = {}
    for line in lines:
        found = re.findall(r"\s--hash[= ]sha256:(\w+)", line)
        fragment = HASH_FRAGMENT.search(line)
        found += [fragment["digest"].lower()] if fragment else []
        if found:
            # Two lines for one package, by marker, are two versions: no file has hashes of both.
            name = requirement_name(line)
            demanded[name] = demanded.get(name, frozenset()) | frozenset(found)
    return demanded


def _asks_for_packages(line: str) -> bool:
    return line.startswith(("-r", "--requirement")) or not line.startswith(("-", "#"))


def _anchor(line: str, request: PipRequest) -> str:
    """Make relative paths absolute, since uv gets the lines in a file elsewhere."""
    line = plain_requirement(line.strip())
    base = (request.working_dir or Path.cwd()).absolute()
    option = PATH_OPTIONS.fullmatch(line)
    if option and "://" not in option["path"]:
        return f"{option['option']} {base / option['path'].strip()}"
    if is_path(line) and not line.startswith(("file:", "~")):
        return str(base / line)
    found = re.fullmatch(r"(?P<name>[^@;#]+@\s*)(?P<path>\.{1,2}/.+)", line)
    return f"{found['name']}{(base / found['path']).as_uri()}" if found else line


def _check_provided(request: PipRequest) -> None:
    """Raise SpecError when a requirement contradicts what the environment has already."""
    provided = {str(canonicalize_name(name)): version for name, version in request.provided}
    contradictions = []
    for line in request.requirements:
        try:
            # Without what PEP 508 does not have: a comment, and options such as `--hash`.
            wanted = Requirement(re.split(r"\s+(?:#|--)", line)[0].strip())
        # Options, paths and bare URLs: what these contradict, uv finds.
        except InvalidRequirement:
            continue
        version = provided.get(str(canonicalize_name(wanted.name)))
        if version is None or _is_excluded_by_marker(wanted, request):
            continue
        # conda chose it already: a prerelease within the bounds is not a contradiction.
        if not wanted.specifier.contains(version, prereleases=True):
            contradictions.append(
                f"pip requires {without_login(line.strip())}, "
                f"but conda already chose {wanted.name} {version}"
            )
    if contradictions:
        raise SpecError(
            "\n".join(contradictions),
            hint="remove it from one half, or require the same version in both",
        )


def _is_excluded_by_marker(wanted: Requirement, request: PipRequest) -> bool:
    return wanted.marker is not None and not wanted.marker.evaluate(marker_environment(request))


def marker_environment(request: PipRequest) -> dict[str, str]:
    """Return the marker variables (PEP 508) of the target that differ from this machine's."""
    return target_environment(request.python_version, request.platform)
