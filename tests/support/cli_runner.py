"""Run the command line as users do, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ENVFERRY = Path(sys.executable).with_name("envferry")


@dataclass(frozen=True, kw_only=True)
class CliRunner:
    """A folder with specs and a download cache."""

    home: Path
    cache: Path
    environ: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the environment for it."""
        environ = {**os.environ, "ENVFERRY_CACHE": str(self.cache), **self.environ}
        return [str(ENVFERRY), *map(str, arguments)], environ

    def run(self, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run envferry and compare its exit code; errors must be ours, never a traceback."""
        argv, environ = self.command(*arguments)
        finished = subprocess.run(
            argv, cwd=self.home, env=environ, capture_output=True, text=True, check=False
        )
        assert finished.returncode == expect, finished.stderr
        assert "Traceback" not in finished.stderr
        if expect not in (0, 130):
            assert "error: " in finished.stderr
        return finished

    def write_spec(self, name: str, text: str) -> Path:
        """Write specs/NAME.yml."""
        path = self.home / f"specs/{name}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path
