"""Every error that envferry raises on purpose, each with its exit code.

PipelineError
├── UsageError        2   the command line does not make sense
├── SpecError         3   a spec, lock or setting is wrong, or cannot be solved
├── ToolFailed        4   a program that we ran failed
├── StaleLock         5   the lock is older than its spec
├── NoSandbox         6   no sandbox engine works here
├── NotFound          7   no such spec, artifact, tag or installation
├── IntegrityError    8   bytes are not what their checksum or signature says
├── StoreError        9   a registry's store cannot be reached or refuses
├── TargetOccupied   10   the install target is in use or not ours
├── HostError        11   this machine lacks what is needed: glibc, disk space, permission
└── PolicyViolation  12   an audit found what its policy does not allow

A bug exits with 1 and a traceback, an interrupt with 130.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_BUG = 1
# 128 and the number of SIGINT, as shells report a program that it ended.
EXIT_INTERRUPTED = 130


class PipelineError(Exception):
    """Base of all expected errors: a message for people and the next command to try."""

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PipelineError):
    """The command line does not make sense."""

    exit_code = 2


class SpecError(PipelineError):
    """A spec, lock or setting is wrong, or cannot be solved."""

    exit_code = 3


class RequiredByUrl(SpecError):
    """The pip half requires a package by its URL, and the conda half brings it."""

    def __init__(self, message: str, *, name: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class ToolFailed(PipelineError):
    """A program that we ran failed."""

    exit_code = 4


class CheckFailed(ToolFailed):
    """A check of an environment failed."""

    def __init__(self, message: str, *, check: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.check = check


class StaleLock(PipelineError):
    """The lock is older than its spec."""

    exit_code = 5


class NoSandbox(PipelineError):
    """No sandbox engine works here."""

    exit_code = 6


class NotFound(PipelineError):
    """No such spec, artifact, tag or installation."""

    exit_code = 7


class IntegrityError(PipelineError):
    """Bytes are not what their checksum or signature says."""

    exit_code = 8


class StoreError(PipelineError):
    """A registry's store cannot be reached or refuses."""

    exit_code = 9


class TargetOccupied(PipelineError):
    """The install target is in use or not ours."""

    exit_code = 10


class HostError(PipelineError):
    """This machine lacks what is needed: glibc, disk space, permission."""

    exit_code = 11


class PolicyViolation(PipelineError):
    """An audit found what its policy does not allow."""

    exit_code = 12


def by_exit_code(exit_code: int) -> type[PipelineError]:
    """Return the class of errors that end with `exit_code`: for errors from another process."""
    # Direct subclasses alone: CheckFailed and RequiredByUrl have the exit codes of their bases.
    classes = {error.exit_code: error for error in PipelineError.__subclasses__()}
    return classes.get(exit_code, PipelineError)
