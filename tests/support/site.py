"""The documentation's site, built as `make site` builds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_site(target: Path) -> Path:
    """Build both languages into a folder; a warning is an error."""
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    for config, folder in (("mkdocs.yml", "."), ("mkdocs.zh.yml", "zh")):
        words = [*build, "--config-file", config, "--site-dir", str(target / folder)]
        finished = subprocess.run(
            words, cwd=ROOT, env=environ, check=False, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
    return target
