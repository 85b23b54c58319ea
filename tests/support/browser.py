"""A real browser for the pages: the system's Chromium, driven from here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.cli_runner import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Return a Chromium of this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """Run a browser; as root it has no sandbox of its own."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(registry: Path | str, cache: Path) -> Iterator[str]:
    """Run `envferry serve` at a free port; yield its address."""
    argv = [str(ENVFERRY), "serve", "--port", "0", "--json", "--registry", str(registry)]
    environ = {**os.environ, "ENVFERRY_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            document = ""
            while not document.endswith("}\n") and (line := child.stdout.readline()):
                document += line
            yield str(json.loads(document)["url"])
        finally:
            child.terminate()
            child.wait(timeout=20)
