"""How a program is started in an installed environment, as activation would have it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.base.env_variables import UNSET, read_variables
from envferry.base.shell import quoted
from envferry.config import child_environ
from envferry.errors import HostError, NotFound
from envferry.install.records.installed import chosen_id, is_at_its_prefix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation

SHELLS = ("/bin/bash", "/usr/bin/bash")
"""Scripts of packages are tried out with bash; elsewhere sh has to do."""
START = """\
_envferry_source() { . "$_envferry_script"; }
for _envferry_script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    if [ -f "$_envferry_script" ]; then _envferry_source; fi
done
unset -f _envferry_source
unset _envferry_script
exec "$@"
"""
BASH_START = Path(__file__).with_name("shell.bash")


class ProgramStart(msgspec.Struct, frozen=True, kw_only=True):
    """What to become: the arguments and variables of a program in an environment."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]


def start_in(home: EnvHome, words: Sequence[str]) -> ProgramStart:
    """Return how to start a program in the current installation of an environment.

    Raises NotFound where there is none, HostError where its path leads to something else.
    """
    installation = home.installation(chosen_id(home, None))
    if not is_at_its_prefix(home, installation):
        message = (
            f"{home.name}@{installation.id} is installed for {installation.prefix}, "
            "which is not this installation here"
        )
        raise HostError(message, hint="run it where it has that path, such as in the container")
    tree = home.tree(installation.id)
    return ProgramStart(
        argv=(find_shell(), "-c", START, "envferry", *words),
        environ=activated_environ(installation, read_variables(tree)),
    )


def interactive_shell(home: EnvHome, shell: str) -> ProgramStart:
    """Return how to start a shell for people, whose own start-up files do not hide the environment.

    `shell` is the path of the one that the user prefers; empty for any.
    """
    program = shell if shell and os.access(shell, os.X_OK) else find_shell()
    if not os.access(program, os.X_OK):
        message = f"the shell {program} does not exist"
        raise NotFound(message, hint="set SHELL to the path of a shell")
    own = ("--rcfile", str(BASH_START)) if Path(program).name == "bash" else ()
    return start_in(home, (program, *own, "-i"))


def find_shell() -> str:
    """Return the shell that reads the scripts of packages."""
    return next((shell for shell in SHELLS if os.access(shell, os.X_OK)), "/bin/sh")


def activated_environ(installation: Installation, variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's variables, with those that activation sets and without another's."""
    prefix = installation.prefix
    changes: dict[str, str | None] = {
        "CONDA_PREFIX": prefix,
        "CONDA_DEFAULT_ENV": installation.name,
        "CONDA_PROMPT_MODIFIER": f"({installation.name}) ",
        "PATH": activated_path(prefix),
    }
    changes.update({name: None if text == UNSET else text for name, text in variables.items()})
    return child_environ(**changes)


def activated_path(prefix: str) -> str:
    """Return PATH with the programs of an environment first, without those of an active one."""
    environ = child_environ()
    active = environ.get("CONDA_PREFIX")
    old = (f"{active}/bin" if active else "", f"{prefix}/bin")
    rest = [one for one in environ.get("PATH", os.defpath).split(":") if one not in old]
    return ":".join([f"{prefix}/bin", *rest])


def start_script(installation: Installation, variables: Mapping[str, str]) -> str:
    """Return a script that activates by itself, then becomes its arguments: for other launchers."""
    lines = [
        f"export CONDA_PREFIX={quoted(installation.prefix)}",
        f"export CONDA_DEFAULT_ENV={quoted(installation.name)}",
        'export PATH="$CONDA_PREFIX/bin:$PATH"',
        *(
            f"unset {name}" if text == UNSET else f"export {name}={quoted(text)}"
            for name, text in variables.items()
        ),
    ]
    return "\n".join(lines) + "\n" + START
