"""Man pages: every command has one, and man(1) finds nothing wrong with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import click
import pytest

from envferry.cli.main import COMMANDS, SECTIONS, envferry
from envferry.cli.man_pages import man_pages
from tests.conftest import require
from tests.support.cli_runner import CliRunner

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("man")
    runner = CliRunner(home=home, cache=home / "cache")
    said = json.loads(runner.run("man", "share", "--json").stdout)
    assert sorted(said["pages"]) == sorted(path.name for path in home.glob("share/man1/*"))
    return home / "share/man1"


def test_every_command_has_a_page(pages: Path) -> None:
    names = {path.name for path in pages.iterdir()}
    assert {f"envferry-{name}.1" for name in COMMANDS} < names
    assert {"envferry.1", "envferry-cache-prune.1"} < names


def test_man_has_no_complaint(pages: Path) -> None:
    require("groff", groff := shutil.which("groff"))
    words = [str(groff), "-man", "-ww", "-z", *map(str, pages.iterdir())]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    assert said.stderr == ""


def test_a_page_says_what_the_help_says(pages: Path) -> None:
    text = (pages / "envferry-install.1").read_text().replace("\\-", "-")
    command = envferry.get_command(click.Context(envferry), "install")
    assert command
    for parameter in command.params:
        for name in parameter.opts if isinstance(parameter, click.Option) else ():
            assert name in text
    assert "\\fBenvferry install demo --envs-dir" in text


def test_what_roff_would_interpret_is_text() -> None:
    group = click.Group(help=".so /etc/passwd\n\n'quoted' \\ back-slash … done")
    page = dict(man_pages(group, {}))["envferry.1"]
    assert "\n\\&.so /etc/passwd" in page
    assert "\n\\&'quoted' \\e back\\-slash \\[u2026] done" in page


def test_all_sections_are_on_the_first_page(pages: Path) -> None:
    text = (pages / "envferry.1").read_text()
    for title in SECTIONS:
        assert f'.SH "{title.upper()}"'.replace("-", "\\-") in text


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    said = runner.run("man", "file", expect=11).stderr
    assert "error: cannot write to file/man1" in said
    assert "hint: name another directory" in said
