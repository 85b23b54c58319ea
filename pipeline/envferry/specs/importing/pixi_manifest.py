"""A pixi manifest, and what of it was not taken over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envferry.specs.syntax.toml_text import all_of, table_at

if TYPE_CHECKING:
    from pathlib import Path

TASKS = "tasks"
"""What to do in an environment, not what is in it."""


class PixiManifest:
    """A pixi manifest, and what of it was not taken over."""

    def __init__(self, document: dict[str, Any], path: Path, base: Path) -> None:
        self.path = path
        self.base = base
        self.document = document
        self.in_pyproject = "pixi" in document.get("tool", {})
        # A pyproject.toml has below `[tool.pixi]` what a pixi.toml has at its top.
        self.root = table_at(document.get("tool", {}).get("pixi", document), path, "pixi")
        # `[project]` is the older name of `[workspace]`.
        own = self.root.get("workspace", self.root.get("project", {}))
        self.workspace = table_at(own, path, "workspace")
        self.environment = "default"
        self.others: list[str] = []
        """The environments that are not read."""
        self.inherited: set[str] = set()
        """What is asked for as `[workspace.dependencies]` has it."""
        self.left_out: list[str] = []
        self.notes: list[str] = []

    def table(self, value: object, name: str) -> dict[str, Any]:
        """Return a value that must be a table."""
        return table_at(value, self.path, name)

    def leave_out(self, text: str) -> None:
        """Note what the spec will not have."""
        if text not in self.left_out:
            self.left_out.append(text)

    def leave_out_table(self, key: str, value: object) -> None:
        """Note a table that the spec will not have; tasks request no packages."""
        if key.rpartition(".")[2] == TASKS:
            self.notes.append(f"`{key}` is left out: {all_of(value)}")
        else:
            self.leave_out(
                f"[{key}] {all_of(value)}: it does not name a package of the environment"
            )
