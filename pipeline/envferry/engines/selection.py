"""Choose the sandbox engine that works here."""

from __future__ import annotations

import logging
from enum import Enum
from typing import TYPE_CHECKING

from envferry.engines.bubblewrap import Bubblewrap
from envferry.engines.oci import ContainerEngine
from envferry.errors import NoSandbox

if TYPE_CHECKING:
    from envferry.engines.port import Sandbox

log = logging.getLogger(__name__)


class Engine(str, Enum):
    """What `--sandbox` may name."""

    AUTO = "auto"
    DOCKER = "docker"
    PODMAN = "podman"
    BWRAP = "bwrap"


# In the order in which `auto` tries them; last bubblewrap, which uses the host's /usr.
REAL_ENGINES = (Engine.DOCKER, Engine.PODMAN, Engine.BWRAP)


def choose_sandbox(engine: Engine, image: str | None = None) -> Sandbox:
    """Return the engine asked for, or with AUTO the first that works; say which and why.

    Raises NoSandbox with the reason of each engine that does not work.
    """
    if engine is not Engine.AUTO:
        return open_sandbox(engine, image)
    reasons, hint = [], ""
    for candidate in REAL_ENGINES:
        try:
            sandbox = open_sandbox(candidate, image)
        except NoSandbox as error:
            reasons.append(f"{candidate.value}: {error.message}")
            hint = error.hint  # of the last one, which needs no daemon
            continue
        log.info("sandbox: %s", "; ".join([*reasons, f"{candidate.value} works"]))
        return sandbox
    raise NoSandbox("no sandbox engine works here\n  " + "\n  ".join(reasons), hint=hint)


def open_sandbox(engine: Engine, image: str | None = None) -> Sandbox:
    """Return one engine; raise NoSandbox with the reason when it does not work."""
    if engine is Engine.BWRAP:
        return Bubblewrap()
    return ContainerEngine(engine.value, image)
