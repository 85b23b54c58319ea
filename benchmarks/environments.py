"""The environments that benchmarks work on: built once, kept in .bench or .reference."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from demo.walkthrough import CHANNEL_ITEMS, ENVFERRY, PROJECT, copy_spec
from envferry.models import BuiltEnv

if TYPE_CHECKING:
    from pathlib import Path

HOME = PROJECT / ".bench"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A built environment and the folder that its files are in."""

    home: Path
    name: str
    rounds: int
    """How often to repeat: the large one takes minutes."""

    @property
    def cache(self) -> Path:
        """The download cache and the builds."""
        return self.home / "cache"

    @property
    def built(self) -> BuiltEnv:
        """What the build stage left."""
        (record,) = self.cache.glob(f"builds/{self.name}-*/built.json")
        return msgspec.json.decode(record.read_bytes(), type=BuiltEnv)

    def envferry(self, *arguments: str | Path) -> str:
        """Run the command line in the environment's folder and return its output."""
        environ = {**os.environ, "ENVFERRY_CACHE": str(self.cache)}
        argv = [str(ENVFERRY), *map(str, arguments)]
        return subprocess.run(
            argv, cwd=self.home, env=environ, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()


def small() -> Environment:
    """Return the demo environment (180 MB), building it when it is not there."""
    environment = Environment(home=HOME, name="demo", rounds=3)
    if not list(HOME.glob("cache/builds/demo-*/built.json")):
        HOME.mkdir(exist_ok=True)
        environment.envferry("channel", "create", "channel", *CHANNEL_ITEMS)
        if not (HOME / "specs").exists():
            copy_spec(PROJECT / "specs/demo.yml", HOME / "specs/demo.yml")
        environment.envferry("lock", "demo", "--channel", "channel")
        environment.envferry("build", "demo")
    return environment


def reference() -> Environment:
    """Return the reference environment (10 GB), which `make reference KEEP=1` leaves built."""
    environment = Environment(home=PROJECT / ".reference", name="transformer_env", rounds=2)
    if not list(environment.cache.glob("builds/*/built.json")):
        sys.exit("error: the reference environment is not built\nhint: make reference KEEP=1")
    return environment
