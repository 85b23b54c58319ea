"""The tutorials, as a reader types them: every command of a console block is run and compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.install.host.host_check import glibc_version
from tests.support.console_blocks import blocks_of, check_page
from tests.support.readers import reader_environ

if TYPE_CHECKING:
    from tests.support.cli_runner import CliRunner

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "tutorials/first-environment.md": {"ferry/specs/hello.yml": 0},
    "tutorials/two-machines.md": {"a/requirements.txt": 0, "a/specs/my_training_env.yml": 1},
}
"""The files that a reader writes: the number of the yaml block that each one is."""
pytestmark = [pytest.mark.container, pytest.mark.network]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_prints_what_the_page_shows(
    page: str, demo_runner: CliRunner, tmp_path: Path
) -> None:
    text = (DOCS / page).read_text().replace('"2.36"', f'"{glibc_version()}"')
    blocks = blocks_of(text)
    files = {number: path for path, number in PAGES[page].items()}
    environ = reader_environ(tmp_path / "home", demo_runner)
    folder = tmp_path / "a" if "a/requirements.txt" in PAGES[page] else tmp_path
    folder.mkdir(exist_ok=True)
    steps: list[tuple[str, list[str]]] = []
    yaml_blocks = 0
    for block in blocks:
        if block.kind == "yaml":
            if path := files.get(yaml_blocks):
                target = tmp_path / path
                command = f"mkdir -p {target.parent} && cat > {target} <<'X'\n{block.text}X"
                steps.append((command, []))
            yaml_blocks += 1
        else:
            steps += block.commands()
    check_page(steps, folder, environ)


def test_each_tutorial_has_blocks_that_are_run() -> None:
    for page in DOCS.glob("tutorials/*.md"):
        name = str(page.relative_to(DOCS))
        assert name in PAGES
        commands = [command for one in blocks_of(page.read_text()) for command, _ in one.commands()]
        assert sum(command.startswith("envferry ") for command in commands) >= 5
        loose = re.findall(r"^    \$ ", page.read_text(), re.MULTILINE)
        assert not loose, "a block that is not fenced is not run"
