"""Draw docs/screenshots: `python -m tests.screenshots [REGISTRY]`.

REGISTRY, such as /srv/envs, is a new folder, which the pages name; it is removed again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from envferry.registry import Registry
from tests.showcase import publish_showcase
from tests.support.advisories import RECORDS, record, write_records
from tests.support.artifacts import PLATFORM
from tests.support.browser import chromium, find_chromium, serving
from tests.support.cli_runner import CliRunner

TARGET = Path(__file__).parents[1] / "docs/screenshots"
DESK = {"width": 1000, "height": 720}
PHONE = {"width": 375, "height": 720}
STABLE = f"envs/transformer/{PLATFORM}/stable/"
TORCH_FAULT = record(
    *("CVE-2025-32434", "torch", {"introduced": "0"}, {"fixed": "2.9.1"}),
    database_specific={"severity": "CRITICAL"},
)
SHOTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("environments", "", {"viewport": DESK}),
    ("artifact", STABLE, {"viewport": DESK}),
    ("artifact-dark", STABLE, {"viewport": DESK, "color_scheme": "dark"}),
    ("versions-phone", "envs/transformer/", {"viewport": PHONE}),
    ("artifact-phone", STABLE, {"viewport": PHONE, "color_scheme": "dark"}),
    ("audit", f"{STABLE}audit/", {"viewport": DESK}),
    ("find", "find/?q=torch%3E%3D2.8", {"viewport": DESK}),
)


def main() -> None:
    """Draw all."""
    executable = find_chromium()
    if not executable:
        sys.exit("error: no Chromium here\nhint: apt-get install chromium")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="site-") as scratch:
        registry = Path(sys.argv[1] if sys.argv[1:] else f"{scratch}/artifacts")
        registry.mkdir()
        publish_showcase(Registry.open(str(registry)), Path(scratch, "packed"))
        records = write_records(Path(scratch, "osv"), *RECORDS, TORCH_FAULT)
        runner = CliRunner(home=Path(scratch), cache=Path(scratch, "cache"))
        runner.run("audit", "update", records)
        with serving(registry, Path(scratch, "cache")) as url, chromium(executable) as browser:
            for name, path, look in SHOTS:
                context = browser.new_context(**look)
                page = context.new_page()
                page.goto(url + path)
                page.screenshot(path=TARGET / f"{name}.png")
                context.close()
        shutil.rmtree(registry)


if __name__ == "__main__":
    main()
