"""Source packages in git repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.install.host.host_check import glibc_version
from envferry.process import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cli_runner import CliRunner


ONE_SOURCE = """\
channels: [{channel}]
dependencies: [python, pip, {{pip: ["{line}"]}}]
envferry: {{system: {{glibc: '{glibc}'}}}}
"""


SETUP = "from setuptools import setup\nsetup(name='gitted', version='2.5', py_modules=['gitted'])\n"


GIT = (
    "git",
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@example.org",
    "-c",
    "protocol.file.allow=always",
)


def write(directory: Path, files: dict[str, str]) -> Path:
    """Write text files below a directory."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def commit(repository: Path) -> None:
    """Commit all that is in a repository, new or not."""
    for words in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-q", "-m", "x")):
        run([*GIT, "-C", repository, *words])


def one_source(demo_runner: CliRunner, line: str) -> str:
    """Return a spec with one line in its pip half."""
    channel = demo_runner.home / "channel"
    return ONE_SOURCE.format(channel=channel, line=line, glibc=glibc_version())
