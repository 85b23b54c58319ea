"""The checks of a spec, each in a container of its own on the finished environment."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry import errors
from envferry.base.env_variables import read_variables
from envferry.base.isolated import ISOLATED_ENVIRONMENT, SYSTEM_PATH, activated
from envferry.build.inside.network_attempts import COUNTED, split_counted
from envferry.engines.port import Job, Sandbox

if TYPE_CHECKING:
    from envferry.build.build_dir import BuildDir
    from envferry.models import Checks
    from envferry.progress import Progress

log = logging.getLogger(__name__)

IN_AN_EMPTY_DIRECTORY = "cd /tmp || exit\n"
"""Of the container alone. Its `/` may be an image's, whose files no check may import."""


def run_checks(checks: Checks, work: BuildDir, sandbox: Sandbox, progress: Progress) -> None:
    """Run each check of the spec in a container of its own on the finished environment.

    What activation sets is set for them, as on a host; what they print is in the log (`-v`).
    Raises ToolFailed when one fails; one that only tried to use the network is a warning.
    """
    argvs = checks.argvs(str(work.prefix))
    if not argvs:
        return
    environ = {
        **ISOLATED_ENVIRONMENT,
        **activated(read_variables(work.tree)),
        "PATH": f"{work.prefix}/bin:{SYSTEM_PATH}",
    }
    with progress.task(f"check {len(argvs)} imports and commands"):
        for argv in argvs:
            job = Job(
                argv=("/bin/sh", "-c", IN_AN_EMPTY_DIRECTORY + COUNTED, "sh", *argv),
                # Read-only: a check must not change what is packed.
                mounts=(work.mount(writable=False),),
                environ=environ,
            )
            finished = sandbox.run(job, check=False)
            # The counters are those of the container's own network namespace, so no other
            # program's tries count.
            said, tries = split_counted(finished.stderr)
            for line in (*finished.stdout.splitlines(), *said.splitlines()):
                log.info("  %s", line)
            if finished.returncode != 0:
                said = said.strip() or finished.stdout.strip()
                said = said or f"it printed nothing and exited with {finished.returncode}"
                raise failed_check(argv[-1], said, tries)
            if tries:
                log.warning(
                    "the check `%s` tried to use the network, which a build does not have", argv[-1]
                )


def failed_check(words: str, said: str, tries: int) -> errors.ToolFailed:
    """Describe a check that failed by the last lines that it printed."""
    tried = ["it tried to use the network, which a build does not have"] if tries else []
    lines = [f"the check `{words}` failed in the new environment:", *said.splitlines()[-12:]]
    return errors.ToolFailed(
        "\n  ".join([*lines, *tried]),
        hint="correct the spec (or its `checks:`), then lock and build again",
    )
