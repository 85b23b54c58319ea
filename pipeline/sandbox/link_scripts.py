"""Post-link scripts inside the container: run as conda runs them, and to their real end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import process
from pipeline.config import child_environ
from pipeline.errors import ToolFailed
from pipeline.sandbox.network_tries import network_tries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.sandbox.conda_meta import CondaRecords

GRACE_SECONDS = 5
"""How long what a script started may go on after it."""


def run_link_scripts(records: CondaRecords, linked: Sequence[str]) -> Iterator[str]:
    """Run the packages' post-link scripts, each after those of what it needs; yield whose is next.

    Raises ToolFailed when a script fails, leaves something running, or wanted another machine,
    failing or not.
    """
    by_name = {record["name"]: record for record in records.records.values()}
    for name in linked:
        script = records.prefix / f"bin/.{name}-post-link.sh"
        if script.exists():
            yield name
            run_script(script, records.prefix, by_name[name])
    # Where conda has scripts leave what people should read, it shows and removes it.
    records.prefix.joinpath(".messages.txt").unlink(missing_ok=True)


def describe_pre_link_scripts(records: CondaRecords) -> Iterator[str]:
    """Yield one line for each script that conda would run in its cache, before linking."""
    for record in records.records.values():
        if f"bin/.{record['name']}-pre-link.sh" in record["files"]:
            yield f"the pre-link script of {record['name']} {record['version']} is not run"


def run_script(script: Path, prefix: Path, record: dict[str, Any]) -> None:
    """Run one script in the environment that conda gives it."""
    what = f"the post-link script of {record['name']} {record['version']}"
    environ = child_environ(
        CONDA_PREFIX=str(prefix),
        PATH=f"{prefix}/bin:/usr/bin:/bin",
        PKG_BUILDNUM=str(record["build_number"]),
        PKG_NAME=record["name"],
        PKG_VERSION=record["version"],
        PREFIX=str(prefix),
        ROOT_PREFIX=str(prefix),
    )
    shell = process.find_program("bash") or "/bin/sh"
    tries = network_tries()
    finished = process.run_to_its_end((shell, script), env=environ, cwd=prefix)
    left = processes_after(f"PKG_NAME={record['name']}")
    if network_tries() > tries:
        raise ToolFailed(
            f"{what} tried to use the network, and a build has none",
            hint="leave the package out, or ask its makers to ship what the script downloads",
        )
    if finished.returncode != 0:
        raise process.failure([what], finished.returncode, finished.stdout, "")
    if left:
        raise ToolFailed(
            f"{what} left processes running: {', '.join(left)}",
            hint="what they do is in no build: leave the package out, or ask its makers to wait",
        )


def processes_after(variable: str) -> list[str]:
    """Return the command lines of those with a variable that go on, and on, after a script."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := processes_with(variable)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def processes_with(variable: str) -> list[str]:
    """Return the command lines of the processes whose environment has `NAME=value`."""
    found = []
    for home in Path("/proc").glob("[0-9]*"):
        try:
            environ = home.joinpath("environ").read_bytes().split(b"\0")
            words = home.joinpath("cmdline").read_bytes().split(b"\0")
        except OSError:
            # It has ended, or is not ours.
            continue
        if variable.encode() in environ:
            found.append(b" ".join(words).decode(errors="replace").strip())
    return sorted(found)
