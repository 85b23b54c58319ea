"""How a program is started in an installed environment, as activation would have it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.base.env_variables import UNSET, read_variables
from envferry.base.shell import fish_quoted, quoted
from envferry.config import child_environ
from envferry.errors import HostError, NotFound
from envferry.install.records.installed import chosen_id, is_at_its_prefix, require_mounted

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
"""Run as `sh -c START NAME WORD …`. In a function, scripts neither see nor change these words."""
RC_FILES = Path(__file__).with_name("shells")
"""What shells for people start with, by the name of the shell."""
AFTER_RC = "_envferry_start"
"""The variable that tells those what to do after the user's own files."""
FISH_PROMPT = """\
functions -q fish_prompt; and functions -c fish_prompt _envferry_own_prompt
function fish_prompt; printf %s $CONDA_PROMPT_MODIFIER; _envferry_own_prompt; end
"""


class ProgramStart(msgspec.Struct, frozen=True, kw_only=True):
    """What to become: the arguments and variables of a program in an environment."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]


def start_in(home: EnvHome, words: Sequence[str]) -> ProgramStart:
    """Return how to start a program in the current installation of an environment.

    Raises NotFound where there is none, HostError where its path leads to something else.
    """
    installation = current_here(home)
    environ = activated_environ(installation, read_variables(home.tree(installation.id)))
    return ProgramStart(argv=(find_shell(), "-c", START, "envferry", *words), environ=environ)


def current_here(home: EnvHome) -> Installation:
    """Return the current installation.

    Raises HostError where its path leads to something else, or to an image that is not mounted.
    """
    installation = home.installation(chosen_id(home, None))
    if not is_at_its_prefix(home, installation):
        message = (
            f"{home.name}@{installation.id} is installed for {installation.prefix}, "
            "which is not this installation here"
        )
        raise HostError(message, hint="run it where it has that path, such as in the container")
    require_mounted(home, installation)
    return installation


def interactive_shell(home: EnvHome, shell: str) -> ProgramStart:
    """Return how to start a shell for people, whose own start-up files do not hide the environment.

    `shell` is the path of the one that the user prefers; empty for any.
    """
    program = shell if shell and os.access(shell, os.X_OK) else find_shell()
    if not os.access(program, os.X_OK):
        message = f"the shell {program} does not exist"
        raise NotFound(message, hint="set SHELL to the path of a shell")
    installation = current_here(home)
    lines = activation_lines(installation, read_variables(home.tree(installation.id)))
    words, more = options_of(program, {"CONDA_PROMPT_MODIFIER": f"({home.name}) ", **lines})
    start = start_in(home, (program, *words))
    return msgspec.structs.replace(start, environ={**start.environ, **more})


def options_of(
    program: str, lines: Mapping[str, str | None]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return options and variables with which a shell activates after the user's own files.

    These may have activated conda's base, as `conda init` lets them: all is set once more. None
    takes a variable away. Shells that are not known only inherit it.
    """
    name = Path(program).name
    if name == "fish":
        text = "".join(
            f"set -e {one}\n" if value is None else f"set -gx {one} {fish_quoted(value)}\n"
            for one, value in lines.items()
        )
        text += "set -gx PATH $CONDA_PREFIX/bin $PATH\n" + FISH_PROMPT
        # fish runs what `-C` gives after its configuration (fish(1)).
        return ("-i", "-C", text), {}
    text = "\n".join(export_lines(lines))
    if name == "bash":
        return ("--rcfile", str(RC_FILES / "bashrc"), "-i"), {AFTER_RC: text}
    if name == "zsh":
        # zsh has no option like bash's `--rcfile`: it reads whatever is in ZDOTDIR.
        set_by_user = child_environ().get("ZDOTDIR", "")
        own = {"_envferry_zdotdir": set_by_user} if set_by_user else {}
        return ("-i",), {AFTER_RC: text, "ZDOTDIR": str(RC_FILES / "zsh"), **own}
    return ("-i",), {}


def find_shell() -> str:
    """Return the shell that reads the scripts of packages."""
    return next((shell for shell in SHELLS if os.access(shell, os.X_OK)), "/bin/sh")


def activated_environ(installation: Installation, variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's variables, with those that activation sets and without another's."""
    changes: dict[str, str | None] = {
        "CONDA_PROMPT_MODIFIER": f"({installation.name}) ",
        "PATH": activated_path(installation.prefix),
        **activation_lines(installation, variables),
    }
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
    lines = export_lines(activation_lines(installation, variables))
    return "\n".join(lines) + "\n" + START


def activation_lines(
    installation: Installation, variables: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the variables that activation sets, but for PATH; None takes one away."""
    return {
        "CONDA_PREFIX": installation.prefix,
        "CONDA_DEFAULT_ENV": installation.name,
        **{name: None if text == UNSET else text for name, text in variables.items()},
    }


def export_lines(values: Mapping[str, str | None]) -> list[str]:
    """Return what sets variables in a POSIX shell, and puts the environment's programs first."""
    return [
        *(
            f"unset {name}" if text is None else f"export {name}={quoted(text)}"
            for name, text in values.items()
        ),
        'export PATH="$CONDA_PREFIX/bin:$PATH"',
    ]
