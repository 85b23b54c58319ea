"""Drafts out of a pyproject.toml in poetry's own format, `[tool.poetry]`.

https://python-poetry.org/docs/pyproject/ and https://python-poetry.org/docs/dependency-specification/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packaging.markers import InvalidMarker, Marker

from envferry.errors import SpecError
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.poetry_versions import ALTERNATIVES, pep440, python_marker
from envferry.specs.importing.pyproject_tables import (
    conda_python,
    git_requirement,
    other_requirements,
)
from envferry.specs.syntax.requirement_lines import relative
from envferry.specs.syntax.toml_text import all_of, parse_toml, table_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

READ = ("dependencies", "source")
FACTS = (
    *("name", "version", "description", "license", "authors", "maintainers", "readme", "homepage"),
    *("repository", "documentation", "keywords", "classifiers", "packages", "include", "exclude"),
    *("scripts", "urls", "plugins", "build", "package-mode", "requires-poetry"),
)
"""Keys that decide no packages."""
SOURCE_FACTS = ("name", "url", "priority", "default", "secondary")
PRIORITIES = ("default", "primary", "secondary", "supplemental", "explicit")
PLACES = {
    "git": ("git", "rev", "tag", "branch", "subdirectory"),
    "url": ("url", "subdirectory"),
    "path": ("path",),
    "file": ("file",),
}
"""What is taken over of a dependency that no index has, by the key that says its kind."""
ALWAYS = ("version", "extras", "markers", "python", "platform")


def draft_poetry(
    text: str, path: Path, base: Path, name: str, channels: Iterable[str]
) -> SpecDraft:
    """Read `[tool.poetry.dependencies]` and the sources; groups and extras are named."""
    document = parse_toml(text)
    poetry = table_at(table_at(document["tool"], path, "tool")["poetry"], path, "tool.poetry")
    dependencies = table_at(poetry.get("dependencies", {}), path, "tool.poetry.dependencies")
    draft = SpecDraft(name=name, channels=list(channels))
    reader = _Reader(path, base, draft)
    draft.conda = [reader.python(dependencies.get("python", "*")), "pip"]
    draft.pip += reader.sources(poetry.get("source", []))
    for package, wanted in dependencies.items():
        if package != "python":
            draft.pip += reader.requirements(package, wanted)
    if not draft.pip:
        draft.notes.append(f"{path.name} has no dependencies: only python is required")
    draft.left_out += [
        f"[tool.poetry] {key}: {all_of(poetry[key])}"
        for key in sorted(poetry.keys() - {*READ, *FACTS})
    ]
    # Without its own table, which would count there as another tool's.
    others = {**document, "tool": {k: v for k, v in document["tool"].items() if k != "poetry"}}
    draft.left_out += other_requirements(others)
    draft.notes.append(
        f"the project itself is not in the spec: add `- {relative(path.parent, base)}` "
        "under `pip:` to carry it too"
    )
    return draft


class _Reader:
    """Reads the dependencies of one file."""

    def __init__(self, path: Path, base: Path, draft: SpecDraft) -> None:
        self.path, self.base, self.draft = path, base, draft

    def python(self, wanted: object) -> str:
        """Return the conda line; of alternatives the last one, which is the newest."""
        text = str(wanted.get("version", "*") if isinstance(wanted, dict) else wanted)
        *others, last = ALTERNATIVES.split(text.strip())
        if others:
            self.draft.notes.append(f"python = {text!r}: {last} is taken of it")
        return conda_python(self._versions("python", last), self.path)

    def sources(self, listed: object) -> Iterator[str]:
        """Yield the option lines of `[[tool.poetry.source]]`."""
        if not isinstance(listed, list):
            message = f"{self.path}: `tool.poetry.source` is not a list"
            raise SpecError(message, hint="write `[[tool.poetry.source]]`")
        tables = [table_at(item, self.path, "tool.poetry.source") for item in listed]
        others = [item for item in tables if item.get("url")]
        # Without its name among them, the usual index is not asked where there is another one.
        is_first = len(others) == len(tables)
        for table in others:
            label = f"[[tool.poetry.source]] {table.get('name', '')}"
            # poetry before 1.5 has `secondary = true` instead of priorities.
            priority = table.get(
                "priority", "supplemental" if table.get("secondary") else "primary"
            )
            is_primary = priority in ("default", "primary") and is_first
            yield f"{'--index-url' if is_primary else '--extra-index-url'} {table['url']}"
            is_first = is_first and not is_primary
            if priority not in PRIORITIES:
                self.draft.left_out.append(f"{label} priority = {priority!r}: not understood")
            if priority == "explicit":
                self.draft.left_out.append(f"{label} (explicit): it is searched for every package")
            self.draft.left_out += [
                f"{label} {key} = {table[key]!r}: not understood"
                for key in sorted(table.keys() - {*SOURCE_FACTS})
            ]

    def requirements(self, name: str, wanted: object) -> Iterator[str]:
        """Yield the requirement of a dependency, or one for each of its alternatives."""
        # A list has one entry for each python or platform, told apart by markers.
        for one in wanted if isinstance(wanted, list) else [wanted]:
            if isinstance(one, str):
                yield name + self._versions(name, one)
                continue
            table = table_at(one, self.path, f"tool.poetry.dependencies.{name}")
            if table.get("optional"):
                self.draft.left_out.append(f"[tool.poetry.dependencies] {name} = {all_of(table)}")
                continue
            yield self._requirement(name, table)

    def _requirement(self, name: str, table: dict[str, Any]) -> str:
        place = next((key for key in PLACES if key in table), "")
        kept = {*ALWAYS, *(PLACES[place] if place else ()), "optional"}
        self.draft.left_out += [
            f"[tool.poetry.dependencies] {name} {{{key} = {table[key]!r}}}: ignored"
            for key in sorted(table.keys() - kept)
        ]
        extras = f"[{','.join(map(str, table['extras']))}]" if table.get("extras") else ""
        marker = self._marker(name, table)
        after = f" ; {marker}" if marker else ""
        if place == "git":
            return git_requirement(f"{name}{extras}", table) + after
        if place == "url":
            folder = f"#subdirectory={table['subdirectory']}" if table.get("subdirectory") else ""
            return f"{name}{extras} @ {table['url']}{folder}{after}"
        if place:
            return relative(self.path.parent / str(table[place]), self.base) + extras + after
        return f"{name}{extras}{self._versions(name, str(table.get('version', '*')))}{after}"

    def _marker(self, name: str, table: dict[str, Any]) -> str:
        """Return when a dependency is wanted: by its markers, its pythons and its platform."""
        parts = []
        try:
            if "python" in table:
                parts.append(python_marker(str(table["python"])))
            if "platform" in table:
                parts.append(f'sys_platform == "{table["platform"]}"')
            if "markers" in table:
                parts.append(str(table["markers"]))
            found = [str(Marker(part)) for part in parts if part]
        except (InvalidMarker, ValueError) as error:
            message = f"{self.path}: the markers of {name} are not valid: {error}"
            raise SpecError(message, hint="correct them") from error
        # In brackets, as a part may have an `or`.
        return " and ".join(f"({one})" if len(found) > 1 else one for one in found)

    def _versions(self, name: str, constraint: str) -> str:
        try:
            return pep440(constraint)
        except ValueError as error:
            message = f"{self.path}: `{name} = {constraint!r}` cannot be taken over: {error}"
            hint = "name one range, or import what `poetry export -o requirements.txt` writes"
            raise SpecError(message, hint=hint) from error
