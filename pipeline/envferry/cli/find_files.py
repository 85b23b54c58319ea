"""`envferry find --file PATTERN`, `--import`, `--license`: by what is in packages."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from envferry.cli.shared.selection import (
    holder_lines,
    match_lines,
    open_index,
    require_environment,
    say_unsearched,
)
from envferry.errors import NotFound
from envferry.redaction import fit_to_show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envferry.cli.shared.console import Console
    from envferry.cli.shared.selection import FindOptions
    from envferry.index.file_queries import FileMatch, FilePattern
    from envferry.models import PackageFacts

UNKNOWN = "unknown"


def find_held_files(console: Console, options: FindOptions) -> int:
    """Print the files that fit, or where a module can be imported; return the exit code."""
    from envferry.index.file_queries import count_unsearched, find_files

    patterns = _patterns(options)
    index = open_index(console, options.registry, fully=options.fully)
    index.read_files(console.progress)
    found = index.ask(find_files(patterns, options.filter()))
    say_unsearched(console, "files", index.ask(count_unsearched(options.filter())))
    if not found and not console.as_json:
        if options.name:
            require_environment(options.name, index)
        what = f"the file {options.file}" if options.file else f"the module {options.module}"
        message = f"no artifact in {index.registry.url} holds {fit_to_show(what)}"
        raise NotFound(message, hint=_other_words(options))
    console.result(found, lambda: _file_lines(found))
    return 0 if found else NotFound.exit_code


def find_licensed(console: Console, pattern: str, options: FindOptions) -> int:
    """Print the artifacts with a package under a licence; return the exit code."""
    from envferry.index.queries import find_packages

    index = open_index(console, options.registry, fully=options.fully)

    def accepts(package: PackageFacts) -> bool:
        return is_under(package, pattern)

    found = index.ask(find_packages(accepts, options.filter()))
    if not found and not console.as_json:
        message = f"no artifact in {index.registry.url} holds a package under {pattern}"
        raise NotFound(message, hint="`envferry show REF` lists the licences of one")
    console.result(found, lambda: match_lines(found))
    return 0 if found else NotFound.exit_code


def is_under(package: PackageFacts, pattern: str) -> bool:
    """Whether a package's licence, or one that its SPDX expression names, fits a pattern."""
    from envferry.pack.spdx import license_names

    names = license_names(package.license or "") or (UNKNOWN,)
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names)


def _other_words(options: FindOptions) -> str:
    """Say how else what was not found may be asked for."""
    if options.module:
        top = options.module.partition(".")[0]
        return (
            "modules that are part of python, and folders without files of their own (namespaces),"
            f" are not found: name a module in it, or run `envferry find '*{top}*'`"
        )
    if (options.file or "").startswith("/"):
        return "a leading `/` is the top of the environment: leave it out to mean any folder"
    return "`*` stands for anything: `envferry find --file 'libcudnn*'`"


def _patterns(options: FindOptions) -> tuple[FilePattern, ...]:
    from envferry.index.file_queries import FilePattern, module_patterns

    if options.module:
        return module_patterns(options.module)
    return (FilePattern.parse(options.file or ""),)


def _file_lines(found: Sequence[FileMatch]) -> Iterable[str]:
    """Return the table of files."""
    rows = [
        ((one.path, f"{one.package} {one.package_version}".strip() or "(no package)"), one)
        for one in found
    ]
    return holder_lines(("FILE", "PACKAGE"), rows)
