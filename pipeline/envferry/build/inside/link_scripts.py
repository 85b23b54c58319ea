"""Post-link scripts inside the container: run as conda runs them, and to their real end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from envferry import process
from envferry.base.json import decode_json
from envferry.build.inside.network_attempts import network_tries
from envferry.config import child_environ
from envferry.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from envferry.build.inside.conda_meta import CondaRecords

GRACE_SECONDS = 5
"""How long what a script started may go on after it."""
IN_ACTIVATED_ENV = """\
for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
  if [ -f "$script" ]; then . "$script"; fi
done
unset script
. "$0"
"""
"""conda 26.7 activates the environment in the shell that then reads the script
(`run_script` in conda/core/link.py)."""


def run_link_scripts(
    records: CondaRecords, linked: Sequence[str], say: Callable[[str], None]
) -> Iterator[str]:
    """Run the packages' post-link scripts, each after those of what it needs.

    Yields what they leave for people to read. Raises ToolFailed when a script fails, leaves
    something running, or wanted another machine, failing or not.
    """
    by_name = {record["name"]: record for record in records.records.values()}
    for name in linked:
        script = records.prefix / f"bin/.{name}-post-link.sh"
        if script.exists():
            say(f"running the post-link script of {name}")
            run_script(script, records.prefix, by_name[name])
            yield from read_messages(records.prefix, name)


def read_messages(prefix: Path, name: str) -> Iterator[str]:
    """Yield what a script left where conda shows it after linking; remove it, as conda does."""
    path = prefix / ".messages.txt"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    path.unlink()
    if text:
        yield f"{name} says: {text}"


def describe_pre_link_scripts(records: CondaRecords) -> Iterator[str]:
    """Yield one line for each script that conda would run in its cache, before linking."""
    for record in records.records.values():
        if f"bin/.{record['name']}-pre-link.sh" in record["files"]:
            yield f"the pre-link script of {record['name']} {record['version']} is not run"


def run_script(script: Path, prefix: Path, record: dict[str, Any]) -> None:
    """Run one script in the environment that conda gives it."""
    what = f"the post-link script of {record['name']} {record['version']}"
    environ = child_environ(
        **package_variables(prefix),
        CONDA_DEFAULT_ENV=prefix.name,
        CONDA_PREFIX=str(prefix),
        CONDA_PROMPT_MODIFIER=f"({prefix.name}) ",
        CONDA_SHLVL="1",
        PATH=f"{prefix}/bin:/usr/bin:/bin",
        PKG_BUILDNUM=str(record["build_number"]),
        PKG_NAME=record["name"],
        PKG_VERSION=record["version"],
        PREFIX=str(prefix),
        ROOT_PREFIX=str(prefix),
    )
    # conda runs them with bash; an image may have sh alone.
    shell = process.find_program("bash") or "/bin/sh"
    tries, before = network_tries(), processes()
    # The word behind the commands of `-c` is `$0` in them: the script that they source.
    words = (shell, "-c", IN_ACTIVATED_ENV, script)
    finished = process.run_to_its_end(words, env=environ, cwd=prefix)
    left = processes_after(before)
    # First: a script may swallow that its download failed, and end well.
    if network_tries() > tries:
        msg = f"{what} tried to use the network, which a build does not have"
        raise ToolFailed(
            msg,
            hint="leave the package out, or ask its maintainers to ship what it downloads",
        )
    if finished.returncode != 0:
        raise process.failure([what], finished.returncode, finished.stdout, "")
    if left:
        msg = f"{what} left processes running: {', '.join(left)}"
        raise ToolFailed(
            msg,
            hint="their output is lost: leave the package out, or tell its maintainers",
        )


def package_variables(prefix: Path) -> dict[str, str]:
    """Return the variables that packages have conda set when it activates an environment.

    Raises ToolFailed for a file that has none.
    """
    found: dict[str, str] = {}
    for path in sorted(prefix.glob("etc/conda/env_vars.d/*.json")):
        try:
            values = decode_json(path.read_bytes(), dict[str, Any])
        except msgspec.MsgspecError as error:
            message = f"{path} is not a table of variables: {error}"
            raise ToolFailed(message, hint="leave out the package that has it") from error
        found |= {name: str(value) for name, value in values.items()}
    return found


def processes_after(before: Collection[int]) -> list[str]:
    """Return the command lines of what goes on, and on, that was not there before a script."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := new_processes(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def new_processes(before: Collection[int]) -> list[str]:
    """Return the command lines of the container's processes that are not in `before`."""
    found = []
    for number in processes().difference(before):
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        found.append(words.replace(b"\0", b" ").decode(errors="replace").strip())
    return sorted(found)


def processes() -> set[int]:
    """Return the numbers of the container's processes, without those that have ended (zombies)."""
    found = set()
    for home in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may hold blanks and parentheses itself (proc(5)).
            state = home.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.add(int(home.name))
    return found
