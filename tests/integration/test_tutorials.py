"""The tutorials, as a reader types them: every command of a console block is run and compared."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.install.host_check import glibc_version
from tests.support.cli_runner import ENVFERRY
from tests.support.console_blocks import agrees, blocks_of, run_commands

if TYPE_CHECKING:
    from tests.support.cli_runner import CliRunner

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "tutorials/first-environment.md": {"ferry/specs/hello.yml": 0},
    "tutorials/two-machines.md": {"a/requirements.txt": 0, "a/specs/my_training_env.yml": 1},
}
"""The files that a reader writes: the number of the yaml block that each one is."""
DOCKER = """\
#!/bin/sh
# What `docker exec CONTAINER PROGRAM…` does in a container that has the volume, by bubblewrap.
shift 2
exec bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /opt \\
  --bind ./conda/envs /opt/conda/envs "$@"
"""

pytestmark = [pytest.mark.container, pytest.mark.network]


def reader(home: Path, runner: CliRunner) -> dict[str, str]:
    """Return the variables of a reader: conda-forge is our own channel, docker is bubblewrap."""
    (home / "bin").mkdir(parents=True)
    (home / "bin/docker").write_text(DOCKER)
    (home / "bin/docker").chmod(0o755)
    (home / "conda-forge").symlink_to(runner.home / "channel")
    (home / ".condarc").write_text(f"custom_channels: {{conda-forge: '{home.as_uri()}'}}\n")
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ENVFERRY_")}
    path = f"{home}/bin:{ENVFERRY.parent}:{os.environ['PATH']}"
    return {**kept, "HOME": str(home), "PATH": path, "ENVFERRY_CACHE": str(runner.cache)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_prints_what_the_page_shows(
    page: str, demo_runner: CliRunner, tmp_path: Path
) -> None:
    text = (DOCS / page).read_text().replace('"2.36"', f'"{glibc_version()}"')
    blocks = blocks_of(text)
    files = {number: path for path, number in PAGES[page].items()}
    environ = reader(tmp_path / "home", demo_runner)
    folder = tmp_path / "a" if "a/requirements.txt" in PAGES[page] else tmp_path
    folder.mkdir(exist_ok=True)
    commands: list[str] = []
    shown: list[list[str]] = []
    yaml_blocks = 0
    for block in blocks:
        if block.kind == "yaml":
            if path := files.get(yaml_blocks):
                target = tmp_path / path
                commands.append(f"mkdir -p {target.parent} && cat > {target} <<'X'\n{block.text}X")
                shown.append([])
            yaml_blocks += 1
            continue
        for command, lines in block.commands():
            commands.append(command)
            shown.append(lines)
    said = run_commands(commands, folder, environ)
    assert len(said) == len(commands)
    for command, printed, expected in zip(commands, said, shown, strict=True):
        assert agrees(printed, expected), f"$ {command}\n" + "\n".join(printed)


def test_each_tutorial_has_blocks_that_are_run() -> None:
    for page in DOCS.glob("tutorials/*.md"):
        name = str(page.relative_to(DOCS))
        assert name in PAGES
        commands = [command for one in blocks_of(page.read_text()) for command, _ in one.commands()]
        assert sum(command.startswith("envferry ") for command in commands) >= 5
        loose = re.findall(r"^    \$ ", page.read_text(), re.MULTILINE)
        assert not loose, "a block that is not fenced is not run"
