"""The command `envferry`: finds the subcommand, and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import logging
import re
import shutil
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from pipeline import __version__
from pipeline.errors import EXIT_INTERRUPTED, HostError, PipelineError

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)

COMMANDS = {
    "channel": ("pipeline.cli.channel", "Make a conda channel out of interpreters and wheels."),
    "import": ("pipeline.cli.specs", "Make a spec out of what people have."),
    "lint": ("pipeline.cli.specs", "Say what is dangerous in a spec."),
    "lock": ("pipeline.cli.specs", "Resolve specs into locks."),
    "diff": ("pipeline.cli.comparing", "Say what is different between two artifacts or locks."),
    "build": ("pipeline.cli.building", "Build a locked environment in a throwaway container."),
    "pack": ("pipeline.cli.building", "Pack a built environment into one archive."),
    "push": ("pipeline.cli.building", "Send archives to a registry and tag them."),
    "release": ("pipeline.cli.building", "Check the lock, build, pack and push: what CI calls."),
    "tag": ("pipeline.cli.registry", "Point a tag at an artifact."),
    "check": ("pipeline.cli.upkeep", "Say what is broken in a registry, and how to mend it."),
    "prune": ("pipeline.cli.upkeep", "Remove old artifacts, and what broken pushes left."),
    "ls": ("pipeline.cli.browsing", "List what a registry holds."),
    "find": ("pipeline.cli.browsing", "Find the artifacts that hold a package."),
    "serve": ("pipeline.cli.serving", "Show a registry in a browser."),
    "show": ("pipeline.cli.registry", "Show what is inside an artifact."),
    "why": ("pipeline.cli.comparing", "Say who needs a package of an artifact."),
    "fetch": ("pipeline.cli.hosting", "Bring an artifact from a registry to a directory."),
    "install": ("pipeline.cli.hosting", "Install an artifact, whole or not at all."),
    "verify": (
        "pipeline.cli.hosting",
        "Check an installed environment, or who signed an artifact.",
    ),
    "rollback": ("pipeline.cli.hosting", "Go back to the installation before."),
    "remove": ("pipeline.cli.hosting", "Remove old installations."),
    "export": ("pipeline.cli.carrying", "Write artifacts into a folder that is carried by hand."),
    "apply": ("pipeline.cli.carrying", "Bring what such a folder holds into a registry."),
    "mirror": ("pipeline.cli.carrying", "Copy what one registry lacks of another."),
    "keygen": ("pipeline.cli.trust", "Make a pair of keys to sign and to check with."),
    "cache": ("pipeline.cli.cache", "Look after the download cache: list, verify, prune."),
    "doctor": ("pipeline.cli.doctor", "Say what this machine can do."),
}
"""Where each command is, and its help: so that `--help` loads none of them."""


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
        # `import` is no name that a function can have.
        name = f"{cmd_name}_command" if cmd_name == "import" else cmd_name
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="envferry")
def envferry() -> None:
    """Carry conda+pip training environments across an air gap.

    On a connected machine: lock, build, pack, push (or release, for all four).
    On the training host: fetch, install.
    """


def main() -> NoReturn:
    """Run the command line; exit with the code of docs/errors.md."""
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; report its error, if it has one, and return its exit code."""
    try:
        result = envferry.main(arguments, prog_name="envferry", standalone_mode=False)
    except PipelineError as error:
        return report(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "envferry"
        return report(error.format_message(), f"see `{path} --help`", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return report("interrupted", "", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away: nobody is left to tell.
        sys.stderr.close()
        return EXIT_INTERRUPTED
    except OSError as error:
        return report_os_error(error)
    return result if isinstance(result, int) else 0


def report_os_error(error: OSError) -> int:
    """Report what the operating system refused."""
    log.debug("the operating system refused", exc_info=error)
    code, words = error.errno, error.strerror or str(error)
    if isinstance(error, shutil.Error) and error.args:
        # The copy of a tree: all files that failed, for one reason most often.
        words = str(error.args[0][0][-1])
        code = int(found[1]) if (found := re.search(r"\[Errno (\d+)\]", words)) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        what, hint = "no space left on the disk", "free some space, then try again"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        what, hint = "not allowed", "is the place writable for this user?"
    else:
        what, hint = words, "run it again with -vv to see where"
    where = f" ({error.filename})" if error.filename else ""
    return report(f"{what}{where}", hint, HostError.exit_code)


def report(message: str, hint: str, exit_code: int) -> int:
    """Print an error for people, without the logins of URLs in it, and return its exit code."""
    from pipeline.cli.console import harmless
    from pipeline.models import without_credentials

    message, hint = (harmless(without_credentials(text)) for text in (message, hint))
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', bold=True)} {hint}", err=True)
    return exit_code


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM like Ctrl-C, so that everything is tidied up."""
    raise KeyboardInterrupt
