"""The command `envferry`: finds the subcommand, and turns errors into messages and exit codes."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from msgspec.structs import replace

from envferry import __version__
from envferry.cli.shared.failures import EXPECTED, Answer, explain, require_utf8
from envferry.config import is_completing, started_file
from envferry.errors import EXIT_INTERRUPTED, UsageError
from envferry.suggestions import did_you_mean

if TYPE_CHECKING:
    from types import FrameType

GARBAGE_OBJECTS = 100_000
"""New objects after which Python looks for garbage: with its 700, a tenth of an update was that."""
SECTIONS = {
    "Specs and locks": {
        "init": ("envferry.cli.init", "Start a repository: a spec, a CI file, a .gitignore."),
        "import": ("envferry.cli.importing", "Create a spec from a file or an environment."),
        "lint": ("envferry.cli.lint", "List what is dangerous in a spec."),
        "lock": ("envferry.cli.lock", "Resolve specs into locks."),
        "changed": ("envferry.cli.changed", "List the specs that changed since a git revision."),
        "diff": ("envferry.cli.diff", "Compare two artifacts or two locks."),
        "channel": ("envferry.cli.channel", "Create a conda channel from interpreters and wheels."),
    },
    "Build machine": {
        "build": ("envferry.cli.build", "Build a locked environment in a throwaway container."),
        "pack": ("envferry.cli.pack", "Pack a built environment into one archive."),
        "push": ("envferry.cli.push", "Send archives to a registry and tag them."),
        "release": ("envferry.cli.release", "Check the lock, build, pack and push: what CI calls."),
    },
    "Registry": {
        "ls": ("envferry.cli.ls", "List what a registry holds."),
        "find": ("envferry.cli.find", "Find the artifacts that hold a package."),
        "show": ("envferry.cli.show", "Show what is inside an artifact."),
        "why": ("envferry.cli.why", "Show why an artifact contains a package."),
        "tag": ("envferry.cli.tag", "Point a tag at an artifact."),
        "audit": (
            "envferry.cli.audit",
            "List known vulnerabilities of artifacts and of what is installed.",
        ),
        "serve": ("envferry.cli.serve", "Show a registry in a browser."),
        "fleet": ("envferry.cli.fleet", "Show which host has what, as hosts report it."),
        "stats": ("envferry.cli.stats", "Count downloads from access logs."),
        "check": (
            "envferry.cli.check",
            "Report what is broken in a registry, and how to repair it.",
        ),
        "prune": ("envferry.cli.prune", "Remove old artifacts and what interrupted pushes left."),
    },
    "Training host": {
        "fetch": ("envferry.cli.fetch", "Download an artifact from a registry to a directory."),
        "install": ("envferry.cli.install", "Install an artifact, whole or not at all."),
        "verify": (
            "envferry.cli.verify",
            "Verify an installed environment, or an artifact's signatures.",
        ),
        "rollback": (
            "envferry.cli.rollback",
            "Switch to the previous installation, or to another.",
        ),
        "remove": ("envferry.cli.remove", "Remove old installations."),
        "follow": ("envferry.cli.follow", "Follow a tag: poll once, install what is new."),
        "image": ("envferry.cli.image", "Write an artifact as one image to mount."),
    },
    "What is installed": {
        "list": ("envferry.cli.list", "List what is installed on this host."),
        "status": (
            "envferry.cli.status",
            "Report whether installed environments are healthy: for monitoring.",
        ),
        "history": ("envferry.cli.history", "Show what was installed and current when."),
        "du": ("envferry.cli.du", "Show the disk space that installations take."),
        "checks": ("envferry.cli.checks", "Run the checks of an installed environment again."),
        "run": ("envferry.cli.run", "Run a program in an installed environment."),
        "shell": ("envferry.cli.run", "Open a shell in an installed environment."),
    },
    "Across an air gap": {
        "export": ("envferry.cli.export", "Write artifacts to a folder on a portable disk."),
        "apply": (
            "envferry.cli.apply",
            "Add the artifacts in an exported folder to a registry.",
        ),
        "mirror": ("envferry.cli.mirror", "Copy what one registry lacks from another."),
        "tool": ("envferry.cli.tool", "Write envferry as one file for hosts without Python."),
    },
    "Set-up": {
        "keygen": ("envferry.cli.keygen", "Generate a pair of keys: to sign, and to verify."),
        "trust": (
            "envferry.cli.trust",
            "Manage the trust bundle: keys, roles, expiry, revocations.",
        ),
        "revoke": ("envferry.cli.trust", "Revoke an artifact: no host installs it."),
        "cache": ("envferry.cli.cache", "Manage the download cache: list, verify, prune."),
        "config": ("envferry.cli.config", "Show each setting and where it comes from."),
        "doctor": ("envferry.cli.doctor", "Show what this machine supports."),
        "completion": (
            "envferry.cli.completion",
            "Print the completion script for a shell.",
        ),
        "man": ("envferry.cli.man", "Write the man pages of all commands."),
    },
}
"""Where each command is, and its help: so that `--help` loads none of them."""
COMMANDS = {name: place for section in SECTIONS.values() for name, place in section.items()}
OTHER_WORDS = {
    "add": "install",
    "create": "import",
    "download": "fetch",
    "info": "show",
    "log": "history",
    "publish": "push",
    "rm": "remove",
    "search": "find",
    "solve": "lock",
    "sync": "mirror",
    "uninstall": "remove",
    "update": "install",
    "upgrade": "install",
    "upload": "push",
}
"""What neighbours call a command."""


class LazyGroup(click.Group):
    """Loads a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the stages."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        # Python has other uses for these names.
        name = f"{cmd_name}_command" if cmd_name in ("import", "list") else cmd_name
        command: click.Command = getattr(module, name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; end silently when the reader of the output has gone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click itself would end with 1
            mute_streams()
            ctx.exit(EXIT_INTERRUPTED)
        except ModuleNotFoundError as error:
            # A module of ours that is missing is a bug, which a traceback explains better.
            if not error.name or error.name.partition(".")[0] == "envferry":
                raise
            message = f"this command needs {error.name}, which is not installed"
            hint = f'run `pip install "envferry[build]"` with {sys.executable}'
            if started_file():
                message = "this command is for build machines, and not in this file"
                hint = "run it where envferry is installed, with its extra `build`"
            raise UsageError(message, hint=hint) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading them."""
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), text) for name, (_, text) in commands.items()]
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names; say which may be meant if there is none."""
        word = args[0]
        if word in COMMANDS or word.startswith("-"):
            return super().resolve_command(ctx, args)
        message = f"`{word}` is not a command of envferry"
        meant = OTHER_WORDS.get(word)
        hint = f"did you mean `{meant}`?" if meant else ""
        raise UsageError(
            message, hint=hint or did_you_mean(word, COMMANDS, "see `envferry --help`")
        )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="envferry")
def envferry() -> None:
    """Carry conda+pip training environments across an air gap.

    On a connected machine: lock, build, pack, push (or release, for all four).
    On the training host: fetch, install.
    """


def main() -> NoReturn:
    """Run the command line; exit with the code of docs/errors.md."""
    # Before anything is made: indexes are records by the hundred thousand that stay to the end.
    gc.set_threshold(GARBAGE_OBJECTS)
    open_streams()
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else run under `nohup`
        signal.signal(signal.SIGHUP, interrupt)
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said: it ends without a traceback
    if threading.active_count() > 1:
        leave(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """End without waiting for threads: after an interrupt some may hang on a server for long.

    So may the programs that they wait for, which would go on alone.
    """
    from envferry import process

    process.stop_running_programs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; report its error, if it has one, and return its exit code."""
    answer = Answer()
    try:
        require_utf8(arguments)
        # A shell that completes a line gives variables and no arguments.
        if not arguments and not is_completing():
            from envferry.cli.next_step import welcome

            click.echo(welcome(Path()))
            return 0
        # Without `standalone_mode`, click raises what it would otherwise print before it exits by
        # itself.
        result = envferry.main(arguments, prog_name="envferry", standalone_mode=False, obj=answer)
    except EXPECTED as error:
        failure = explain(error)
        if "`envferry " in failure.hint:
            from envferry.cli.shared.hints import with_places

            failure = replace(failure, hint=with_places(failure.hint, arguments, envferry))
        return failure.report(answer, as_json="--json" in arguments)
    return result if isinstance(result, int) else 0


def open_streams() -> None:
    """Give a process that was started without one of its three streams one that leads nowhere.

    Else the first file that is opened takes its number, and gets what is said there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (as long as we run)


def mute_streams() -> None:
    """Discard the output: its reader has gone."""
    # Python flushes at its exit, and would meet the broken pipe again (docs of `signal`).
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM, and a terminal that is closed, like Ctrl-C: everything is tidied up."""
    raise KeyboardInterrupt
