"""What a pyproject.toml says of packages outside of `[project] dependencies`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from envferry.errors import SpecError
from envferry.specs.syntax.toml_text import all_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLES = ("project", "build-system", "dependency-groups", "tool")
PROJECT_FACTS = (
    *("name", "version", "description", "readme", "requires-python", "license", "license-files"),
    *("authors", "maintainers", "keywords", "classifiers", "urls", "scripts", "gui-scripts"),
    *("entry-points", "dependencies", "optional-dependencies", "dynamic", "import-names"),
    "import-namespaces",
)
"""The keys of PEP 621 and PEP 794."""
OTHER_TOOLS = {
    "poetry": ("dependencies", "dev-dependencies", "group", "source", "extras"),
    "pdm": ("dev-dependencies", "source", "resolution"),
    "hatch": ("envs",),
    "conda-lock": ("channels", "dependencies", "platforms", "pip-repositories"),
}
"""Where other tools have packages and the places they come from."""


def other_requirements(document: dict[str, Any]) -> Iterator[str]:
    """Yield what else of a pyproject.toml asks for packages, or is misspelt."""
    project = document.get("project", {})
    for table, what in (
        (project.get("optional-dependencies"), "[project.optional-dependencies]"),
        (document.get("dependency-groups"), "[dependency-groups]"),
    ):
        for name, lines in table.items() if isinstance(table, dict) else ():
            listed = ", ".join(map(_shown, lines)) if isinstance(lines, list) else str(lines)
            yield f"{what} {name}: {listed}"
    if "dependencies" in project.get("dynamic", []):
        yield "[project] dynamic dependencies: only a build of the project knows them"
    for key in project.keys() - {*PROJECT_FACTS}:
        yield f"[project] {key} = {all_of(project[key])}: not a key of PEP 621"
    for key in document.keys() - {*TABLES}:
        yield f"[{key}] {all_of(document[key])}: not a table of a pyproject.toml"
    for tool, keys in OTHER_TOOLS.items():
        table = document.get("tool", {}).get(tool, {})
        for key in keys if isinstance(table, dict) else ():
            if key in table:
                yield f"[tool.{tool}] {key}: {all_of(table[key])}: {tool}'s own format"


def conda_python(requires_python: str, path: Path) -> str:
    """Return the conda line for a `requires-python`."""
    try:
        specifiers = SpecifierSet(requires_python)
    except InvalidSpecifier as error:
        message = f"{path}: `requires-python = {requires_python!r}` is not a valid version"
        raise SpecError(message, hint="write it as in `>=3.10`") from error
    # Sorted: a SpecifierSet has no order, and the text of a spec must not change by chance.
    parts = sorted(str(item) for item in specifiers)
    return f"python {','.join(part.replace('===', '==') for part in parts)}".strip()


def git_requirement(name: str, table: dict[str, Any]) -> str:
    """Return the requirement on a git repository that a TOML table names."""
    # The most exact one first: a branch moves, a tag may, a commit does not.
    revision = table.get("rev") or table.get("tag") or table.get("branch")
    at = f"@{revision}" if revision else ""
    folder = f"#subdirectory={table['subdirectory']}" if table.get("subdirectory") else ""
    url = str(table["git"]).removeprefix("git+")
    return f"{name} @ git+{url}{at}{folder}"


def _shown(line: object) -> str:
    if isinstance(line, dict) and [*line] == ["include-group"]:
        return f"the group {line['include-group']}"
    return all_of(line) if isinstance(line, dict) else str(line)
