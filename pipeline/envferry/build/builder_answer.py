"""What a builder inside a container answered, as the host takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry import errors
from envferry.base.json import decode_json
from envferry.build.request import BuildAnswer

if TYPE_CHECKING:
    from envferry.process import Finished

LINES_SHOWN = 25


def read_answer(finished: Finished, engine: str) -> BuildAnswer:
    """Return the answer that a builder left on stdout; raise what it raised.

    Raises ToolFailed when it left none.
    """
    try:
        # The answer decides, not the exit code: an engine that breaks down leaves none.
        answer = decode_json(finished.stdout, BuildAnswer)
    except msgspec.DecodeError as error:
        raise errors.ToolFailed(
            f"the build in {engine} exited with {finished.returncode} without an answer\n"
            + "\n".join(f"  {line}" for line in finished.stderr.splitlines()[-LINES_SHOWN:]),
            hint="run it again with -v to see all of its output",
        ) from error
    if answer.error is not None:
        # Of the class that was raised inside: exit codes are one to one with classes.
        raise errors.by_exit_code(answer.exit_code)(answer.error, hint=answer.hint)
    return answer
