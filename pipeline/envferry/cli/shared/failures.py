"""Turn errors into messages, JSON and exit codes."""

from __future__ import annotations

import errno
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from envferry.cli.shared.terminal import printable, styled
from envferry.errors import EXIT_INTERRUPTED, HostError, PipelineError, SpecError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

EXPECTED = (PipelineError, click.ClickException, click.Abort, KeyboardInterrupt, OSError)
"""What `explain` knows; all else is a bug."""

NO_SPACE = ("no space left on the disk", "free some space, then run it again")
NOT_ALLOWED = ("permission denied", "check that this user can read and write there")
NOT_ALLOWED_CODES = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = ("a file is where a folder is expected", "choose another place, or move that file")
OS_ERRORS = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    **dict.fromkeys(NOT_ALLOWED_CODES, NOT_ALLOWED),
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


class Answer(msgspec.Struct):
    """Whether a command has printed its result: with `--json` there is one document only."""

    is_given: bool = False


class Failure(msgspec.Struct, frozen=True):
    """What is said of an error."""

    message: str
    hint: str
    exit_code: int

    def report(self, answer: Answer, *, as_json: bool) -> int:
        """Say it on stderr, as JSON on stdout as well where that is wanted; return the exit code.

        Logins of URLs are left out. A terminal that is gone is told nothing.
        """
        from envferry.redaction import fit_to_show

        message, hint = (printable(fit_to_show(text)) for text in (self.message, self.hint))
        try:
            click.echo(f"{styled('error:', fg='red', bold=True)} {message}", err=True)
            if hint:
                click.echo(f"{styled('hint:', bold=True)} {hint}", err=True)
            if as_json and not answer.is_given:
                from envferry.base.json import to_json

                facts = {"message": message, "hint": hint, "exit_code": self.exit_code}
                click.echo(to_json({"error": facts}), nl=False)
        except OSError as error:
            log.debug("the error message cannot be written", exc_info=error)
        return self.exit_code


def explain(error: BaseException) -> Failure:
    """Return what to say of an error, one of `EXPECTED`."""
    if isinstance(error, PipelineError):
        return Failure(error.message, error.hint, error.exit_code)
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        path = context.command_path if context else "envferry"
        return Failure(error.format_message(), f"see `{path} --help`", UsageError.exit_code)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    return Failure("interrupted", "", EXIT_INTERRUPTED)


def _explain_os_error(error: OSError) -> Failure:
    """Say what the operating system refused."""
    log.debug("the operating system refused", exc_info=error)
    code, words = error.errno, error.strerror or str(error)
    if isinstance(error, shutil.Error) and error.args:
        # The copy of a tree: all files that failed, for one reason most often.
        words = str(error.args[0][0][-1])
        # It has no number of its own, and of the errors of the files the texts alone.
        code = int(found[1]) if (found := re.search(r"\[Errno (\d+)\]", words)) else None
    if code == errno.ENOENT and _is_nowhere():
        hint = "`cd` to an existing folder"
        return Failure("the current folder was removed", hint, HostError.exit_code)
    words, hint = OS_ERRORS.get(code or 0, (words, "run it again with -vv for details"))
    if code in NOT_ALLOWED_CODES and _is_in_cache(error.filename):
        hint = "set ENVFERRY_CACHE to a folder that this user can write to"
    where = f" ({error.filename})" if error.filename else ""
    return Failure(f"{words}{where}", hint, HostError.exit_code)


def _is_in_cache(name: object) -> bool:
    """Whether a file that the operating system named is in the download cache, or is that."""
    from envferry.config import settings

    try:
        return isinstance(name, str) and Path(name).is_relative_to(settings().cache_dir)
    except SpecError:  # of another setting
        return False


def _is_nowhere() -> bool:
    """Whether the current folder was removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def require_utf8(arguments: Iterable[str]) -> None:
    """Raise UsageError for an argument that is not valid text: files are written in UTF-8."""
    for argument in arguments:
        try:
            # Bytes that are not UTF-8 reach Python as lone surrogates (PEP 383), which have no
            # UTF-8 form.
            argument.encode()
        except UnicodeEncodeError as error:
            message = f"the argument {argument!r} is not UTF-8"
            hint = "rename it; if it looks right, set a UTF-8 locale: `export LC_ALL=C.UTF-8`"
            raise UsageError(message, hint=hint) from error
