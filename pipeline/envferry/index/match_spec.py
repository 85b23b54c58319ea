"""A package to look for: `torch>=2.8`, `numpy=1.26`, `openssl<3.0.13`, `nvidia-*`.

Versions that PEP 440 can read are compared as it says, pre-releases included. Others, which conda
packages may have (`1.1.1w`, `2024g`), are compared as conda does:
https://docs.conda.io/projects/conda/en/stable/dev-guide/api/conda/models/version
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import TYPE_CHECKING

import msgspec
from packaging.utils import canonicalize_name

from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

WANTED = re.compile(
    r"(?P<name>[A-Za-z0-9_*][A-Za-z0-9._*-]*?)\s*(?:\[[^\]]*\])?\s*(?P<rest>[\s=<>!~(].*)?"
)
CLAUSE = re.compile(r"(?P<operator>===|==|=|!=|<=|>=|<|>|~=)?\s*(?P<version>[\w.*+!-]+)")
HINT = "write NAME, or NAME with versions: 'torch>=2.8', 'numpy>=1.26,<2', 'openssl=3.0', 'cuda-*'"

Pieces = tuple[tuple[int, int, str], ...]

PIECE = re.compile(r"\d+|[a-z]+|\*")
OPERATORS: dict[str, Callable[[int], bool]] = {
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    "==": lambda order: order == 0,
    "===": lambda order: order == 0,
    "!=": lambda order: order != 0,
    ">=": lambda order: order >= 0,
    ">": lambda order: order > 0,
}


class Clause(msgspec.Struct, frozen=True):
    """One condition on a version."""

    operator: str
    version: str

    def holds(self, version: str) -> bool:
        """Whether a version meets it."""
        from packaging.specifiers import InvalidSpecifier, Specifier
        from packaging.version import InvalidVersion, Version

        try:
            specifier = Specifier(f"{self.operator}{self.version}")
            # By default packaging leaves out pre-releases that the condition does not name.
            holds: bool = specifier.contains(Version(version), prereleases=True)
        except (InvalidSpecifier, InvalidVersion):
            return self._holds_in_conda(version)
        return holds

    def _holds_in_conda(self, version: str) -> bool:
        if self.version.endswith(".*"):
            return _is_of_series(version, self.version[:-2]) == (self.operator == "==")
        if self.operator == "~=":
            # `~= 2.2` is `>= 2.2, == 2.*` (PEP 440, "Compatible release").
            series = Clause("==", f"{self.version.rpartition('.')[0]}.*")
            return series.holds(version) and compare_conda(version, self.version) >= 0
        return OPERATORS[self.operator](compare_conda(version, self.version))

    def __str__(self) -> str:
        return f"{self.operator}{self.version}"


class MatchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A name, which may hold `*`, and conditions on version and build."""

    name: str
    """In its normal form."""
    clauses: tuple[Clause, ...] = ()
    build: str | None = None
    """A glob, for conda packages."""

    @classmethod
    def parse(cls, text: str) -> MatchSpec:
        """Parse a conda or PEP 508 way to write a requirement; raise UsageError for others."""
        # Extras (`name[extra]`) are read and dropped: an index does not know them.
        found = WANTED.fullmatch(text.strip())
        if not found or not canonicalize_name(found["name"]).strip("-"):
            message = f"{text!r} names no package"
            raise UsageError(message, hint=HINT)
        rest, build = (found["rest"] or "").strip().strip("()").strip(), None
        # conda's `NAME=VERSION=BUILD`: with a build, one `=` is exact as well.
        if three := re.fullmatch(r"={1,2}\s*([^=<>!~,\s]+)\s*=\s*([\w.*+-]+)", rest):
            rest, build = f"=={three[1]}", three[2]
        elif two := re.fullmatch(
            r"([\w.*+!]+)\s+([\w.*+-]+)", rest
        ):  # conda's `NAME VERSION BUILD`
            rest, build = f"=={two[1]}", two[2]
        clauses = tuple(_clause(part, text) for part in rest.split(",") if part.strip())
        return cls(name=canonicalize_name(found["name"]), clauses=clauses, build=build)

    def accepts(self, version: str, build: str) -> bool:
        """Whether a package of that name is meant."""
        if self.build is not None and not fnmatchcase(build, self.build):
            return False
        return all(clause.holds(version) for clause in self.clauses)

    def __str__(self) -> str:
        build = f"={self.build}" if self.build else ""
        return self.name + ",".join(map(str, self.clauses)) + build


def _clause(part: str, text: str) -> Clause:
    found = CLAUSE.fullmatch(part.strip())
    version = found["version"] if found else ""
    if not found or "*" in version.removesuffix("*") or version == "":
        message = f"{text!r}: {part.strip()!r} is not a valid version condition"
        raise UsageError(message, hint=HINT)
    operator = found["operator"] or "="
    if version == "*":
        # Any version: PEP 440 has none before this one.
        return Clause(">=", "0.dev0")
    if operator == "=":
        return Clause("==", f"{version.removesuffix('*').removesuffix('.')}.*")
    if version.endswith("*"):
        if operator not in ("==", "!="):
            message = f"{text!r}: `*` is allowed after == and != only"
            raise UsageError(message, hint=HINT)
        version = f"{version.removesuffix('*').removesuffix('.')}.*"
    return Clause(operator, version)


def _is_of_series(version: str, series: str) -> bool:
    """Whether a version begins with another, not in the middle of a number or a word.

    As conda's `=`: `1.1.1` has `1.1.1w` and `1.1.1.2`, not `1.1.10`.
    """
    end, following = series[-1:], version[len(series) :][:1]
    is_cut = (end.isdigit() and following.isdigit()) or (end.isalpha() and following.isalpha())
    return version.startswith(series) and not is_cut


def compare_conda(left: str, right: str) -> int:
    """Return which of two versions is newer, in conda's order: below, at or above 0."""
    # Local parts count only where the public ones are equal, so they come second.
    for ours, theirs in zip(_conda_parts(left), _conda_parts(right), strict=True):
        for one, other in zip_longest(ours, theirs, fillvalue=()):
            # conda fills up with zeros: 1.1 is 1.1.0.
            for a, b in zip_longest(one, other, fillvalue=_rank("0")):
                if a != b:
                    return -1 if a < b else 1
    return 0


def _conda_parts(version: str) -> tuple[list[Pieces], list[Pieces]]:
    """Split `1!1.1.1w+local` into epoch and parts, and local parts, each in numbers and words."""
    epoch, _, rest = version.lower().rpartition("!")
    main, _, local = rest.partition("+")
    parts = [epoch or "0", *re.split(r"[._-]", main)]
    locals_ = re.split(r"[._-]", local) if local else []
    return [_pieces(part) for part in parts], [_pieces(part) for part in locals_]


def _pieces(part: str) -> Pieces:
    pieces = PIECE.findall(part)
    if pieces and not pieces[0].isdecimal():
        # conda has a number before every word: `post1` is `0post1`.
        pieces.insert(0, "0")
    return tuple(map(_rank, pieces))


def _rank(piece: str) -> tuple[int, int, str]:
    """Order pieces: `*`, dev, other words, numbers, post."""
    if piece.isdecimal():
        return (3, int(piece), "")
    return ({"*": 0, "dev": 1, "post": 4}.get(piece, 2), 0, piece)
