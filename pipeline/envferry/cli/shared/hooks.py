"""Runs the programs that a host's settings name when an installation changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from envferry.config import settings

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.installation import Installation


def run_hooks(
    event: Literal["install", "rollback", "remove"], installation: Installation, envs_dir: Path
) -> None:
    """Run the hooks in their order; raise ToolFailed at the first that fails."""
    hooks = settings().hooks
    if not hooks:
        return
    from envferry.install.programs.hook_programs import run_hook

    for hook in hooks:
        run_hook(hook, event, installation, envs_dir)
