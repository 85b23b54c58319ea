"""How words of a command go on, for shells: specs, refs, and what is installed.

Nothing is fetched for it: refs come from a registry that is a directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envferry.config import settings
from envferry.errors import PipelineError

if TYPE_CHECKING:
    import click


def complete_specs(_context: click.Context, _one: click.Parameter, begun: str) -> list[str]:
    """Return the specs whose name begins so."""
    from envferry.specs.spec_names import spec_names

    return [name for name in spec_names(Path("specs")) if name.startswith(begun)]


def complete_installed(_context: click.Context, _one: click.Parameter, begun: str) -> list[str]:
    """Return the environments of this host whose name begins so."""
    return [name for name in installed_names() if name.startswith(begun)]


def complete_refs(context: click.Context, _one: click.Parameter, begun: str) -> list[str]:
    """Return the refs (`NAME@TAG`) that begin so, where the registry is a directory."""
    from envferry.names import current_platform
    from envferry.registry.layout import TAGS

    try:
        root = Path(context.params.get("registry") or settings().registry)
        # The layout of tags: NAME/PLATFORM/TAG below their folder (registry/layout.py).
        paths = root.glob(f"{TAGS}*/{current_platform()}/*")
        refs = sorted(f"{path.parts[-3]}@{path.name}" for path in paths)
    except (OSError, PipelineError):
        return []
    return [ref for ref in refs if ref.startswith(begun)]


def installed_names() -> list[str]:
    """Return the names of the environments of this host; none where that cannot be read."""
    from envferry.install.records.installed import environment_names

    try:
        return environment_names(settings().envs_dir)
    except (OSError, PipelineError):
        return []
