"""Solve both halves of a spec: conda's first, whose choices the pip half has to keep."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace
from packaging.utils import canonicalize_name

from envferry.errors import RequiredByUrl
from envferry.lock.conda.conda_requests import conda_request, solve_platforms
from envferry.lock.pip.pip_half import resolve_with_indexes
from envferry.lock.pip.pip_inputs import pip_request
from envferry.lock.pypi_names import pypi_names
from envferry.specs.syntax.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.lock.conda.conda_messages import CondaAnswer
    from envferry.lock.lock_options import LockOptions
    from envferry.lock.pip.pip_half import ResolvedPip
    from envferry.lock.pip.pip_request import PipRequest
    from envferry.models import LockedPackage, Replacement, Spec
    from envferry.progress import Progress

log = logging.getLogger(__name__)


class SolvedHalves(msgspec.Struct, frozen=True, kw_only=True):
    """What both halves were solved to."""

    conda: CondaAnswer
    replacements: tuple[Replacement, ...]
    pip: Mapping[str, tuple[PipRequest, ResolvedPip]]
    """By platform: what was asked for, and the answer."""


def solve_halves(
    spec: Spec,
    halves: dict[str, Spec],
    kept: tuple[LockedPackage, ...],
    options: LockOptions,
    progress: Progress,
) -> SolvedHalves:
    """Solve a spec for each platform of `halves`.

    What the pip half requires by its URL is more exact than a conda line that is nothing but the
    name: then conda is not asked for it. Which name a URL has, only its metadata may know, so this
    comes out when the pip half is solved. Raises SpecError when a half has no solution.
    """
    # Each round but the last leaves out at least one conda line more, so the loop ends.
    while True:
        # All platforms are solved again, as one request is for all; what was fetched is in the
        # caches.
        request, replacements = conda_request(spec, halves, kept, options, progress)
        conda = solve_platforms(request, spec.name, progress)
        pip: dict[str, tuple[PipRequest, ResolvedPip]] = {}
        fewer: dict[str, Spec] = {}
        for platform, half in halves.items():
            try:
                with progress.task(f"locking {spec.name}: pip packages for {platform}"):
                    asked = pip_request(half, platform, conda.packages, kept, options)
                    pip[platform] = (asked, resolve_with_indexes(asked))
            except RequiredByUrl as error:
                # A marker may limit the URL to this platform: then conda has the others' package.
                fewer[platform] = _without(half, error.name)
                # Nothing is left out: another round would end in the same way.
                if fewer[platform] == half:
                    raise
                log.warning(
                    "%s comes from the URL in the pip half: conda is not asked for it on %s",
                    error.name,
                    platform,
                )
        if not fewer:
            return SolvedHalves(conda=conda, replacements=replacements, pip=pip)
        halves = halves | fewer


def _without(half: Spec, name: str) -> Spec:
    """Return a half without the conda lines that name a distribution and say no more of it."""

    def adds_no_bound(line: str) -> bool:
        parsed = parse_conda_line(line)
        # `name=*` bounds nothing. A version, build, channel, key or URL is a decision of the
        # author: the line stays, and the contradiction is reported.
        if parsed is None or any(
            (parsed.version.strip("=*"), parsed.build, parsed.channel, parsed.keys, parsed.url)
        ):
            return False
        return name in {str(canonicalize_name(item)) for item in pypi_names(parsed.name)}

    return replace(half, conda=tuple(line for line in half.conda if not adds_no_bound(line)))
