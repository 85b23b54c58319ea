"""The guides' console blocks, as an operator types them: run at the paths that they name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.walkthrough import PROJECT, copy_spec
from tests.support.cli_runner import ENVFERRY, CliRunner
from tests.support.console_blocks import blocks_of, check_page

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
FIRST, SECOND = "fa4fa8c4f2e6", "5be02a7d1c90"
"""The ids in the pages."""
PAGES = ("how-to/operator.md", "how-to/air-gap.md")
UPDATE = "envferry tag demo@SECOND stable && envferry tag demo@SECOND latest"
"""What happens on the connected machine between the two blocks of the page about air gaps."""

pytestmark = [pytest.mark.container, pytest.mark.network]


@pytest.fixture(scope="module")
def published(
    demo_runner: CliRunner, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """A registry with two versions of the demo, and their ids; the tags are at the first."""
    home = tmp_path_factory.mktemp("guides")
    runner = CliRunner(home=home, cache=demo_runner.cache)
    (home / "channel").symlink_to(demo_runner.home / "channel")
    copy_spec(PROJECT / "specs/demo.yml", home / "specs/demo.yml")
    spec = home / "specs/demo.yml"
    spec.write_text(spec.read_text().replace("- msgspec\n", "- msgspec<0.21\n"))
    runner.run("lock", "demo", "--channel", "channel")
    runner.run("build", "demo")
    second = runner.home / runner.run("pack", "demo").stdout.strip()
    runner.run("push", second)
    runner.run("push", archive, "--tag", "stable")
    first_id, second_id = (path.name.split(".")[0].rpartition("-")[2] for path in (archive, second))
    assert first_id != second_id
    return home / "artifacts", first_id, second_id


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[list[str]]:
    """What starts a program where the pages' paths are folders of this test."""
    words = ["bwrap", "--dev-bind", "/", "/"]
    for place in ("/media/usb", "/opt/conda/envs", "/srv/envs"):
        folder = tmp_path / place.lstrip("/")
        folder.mkdir(parents=True)
        words += ["--tmpfs", f"/{place.split('/')[1]}", "--bind", str(folder), place]
    if os.getuid() == 0:
        words += ["--cap-add", "ALL"]
    yield words
    shutil.rmtree(tmp_path / "opt")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_prints_what_the_page_shows(
    page: str,
    published: tuple[Path, str, str],
    machine: list[str],
    demo_runner: CliRunner,
    tmp_path: Path,
) -> None:
    registry, first, second = published
    text = (DOCS / page).read_text().replace(FIRST, first).replace(SECOND, second)
    steps: list[tuple[str, list[str]]] = []
    for number, block in enumerate(one for one in blocks_of(text) if one.kind == "console"):
        if page == "how-to/air-gap.md" and number:
            # The site got the first version by the first disk; now there is a second one.
            steps.append(("cp -r /media/usb/v1 /srv/envs/ && rm -r /media/usb/*", ["…"]))
            steps.append((UPDATE.replace("SECOND", second), ["…"]))
        steps += block.commands()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENVFERRY_")}
    environ = {
        **kept,
        "ENVFERRY_CACHE": str(demo_runner.cache),
        "ENVFERRY_REGISTRY": str(registry),
        "PATH": f"{ENVFERRY.parent}:{os.environ['PATH']}",
    }
    check_page(steps, tmp_path, environ, within=machine)
