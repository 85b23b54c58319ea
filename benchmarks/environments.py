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
MEDIUM = PROJECT / "benchmarks/medium.yml"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A built environment and the folder that its files are in."""

    home: Path
    name: str
    rounds: int
    """How often to repeat: the large one takes minutes."""
    fits_disk_once: bool = False
    """Whether the disk has no room for several versions of it, in all the places they go to."""

    @property
    def warm_ups(self) -> int:
        """How many runs come before those that count, where each leaves an archive behind."""
        return 0 if self.fits_disk_once else 1

    @property
    def copies(self) -> int:
        """How many runs that leave an archive behind count."""
        return 1 if self.fits_disk_once else self.rounds

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
    return _built(Environment(home=HOME, name="demo", rounds=3), PROJECT / "specs/demo.yml")


def medium() -> Environment:
    """Return an environment of 2.1 GB (515 MB packed), building it from the package index."""
    return _built(Environment(home=HOME, name="medium", rounds=3), MEDIUM)


def _built(environment: Environment, spec: Path) -> Environment:
    """Build an environment from a channel of this machine's Python, unless it is there."""
    if not list(HOME.glob(f"cache/builds/{environment.name}-*/built.json")):
        HOME.mkdir(exist_ok=True)
        if not (HOME / "channel").exists():
            environment.envferry("channel", "create", "channel", *CHANNEL_ITEMS)
        if not (HOME / f"specs/{spec.name}").exists():
            copy_spec(spec, HOME / f"specs/{spec.name}")
        environment.envferry("lock", environment.name, "--channel", "channel")
        environment.envferry("build", environment.name)
    return environment


def reference() -> Environment:
    """Return the reference environment (10 GB), which `make reference KEEP=1` leaves built."""
    environment = Environment(
        home=PROJECT / ".reference", name="transformer_env", rounds=2, fits_disk_once=True
    )
    if not list(environment.cache.glob("builds/*/built.json")):
        sys.exit("error: the reference environment is not built\nhint: make reference KEEP=1")
    return environment
