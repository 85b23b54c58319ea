"""A folder with specs of hand-made packages that are built in a second each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.cli_runner import CliRunner
from tests.support.tiny_channel import TinyPackage, make_channel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.cli_runner import CliRunner as Runner

SPEC = """\
name: {name}
channels: [{channel}]
dependencies: [{package}]
envferry:
  checks:
    commands: ["{command}"]
"""


def tiny_specs(home: Path, names: Iterable[str], command: str = "true") -> Runner:
    """Make a channel and, for each name, a spec with a lock."""
    wanted = tuple(names)
    packages = [
        TinyPackage(name=f"lib{name}", version="1.0", files=((f"share/{name}", name * 1000),))
        for name in wanted
    ]
    channel = make_channel(home / "channel", packages)
    runner = CliRunner(
        home=home, cache=home / "cache", environ={"ENVFERRY_REGISTRY": str(home / "registry")}
    )
    for name in wanted:
        text = SPEC.format(name=name, channel=channel, package=f"lib{name}", command=command)
        runner.write_spec(name, text)
    runner.run("lock", *wanted)
    return runner
