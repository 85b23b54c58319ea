"""Servers that run while something else does."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from envferry.errors import ToolFailed
from envferry.process import find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


@contextmanager
def background(
    argv: Sequence[str | Path], *, log_path: Path, env: Mapping[str, str] | None = None
) -> Iterator[Callable[[], int | None]]:
    """Run `argv` while the block runs, then kill it and all that it started.

    Its output goes to `log_path`. The yielded function returns its exit status, None while it runs.
    The kernel kills it as well when the thread that started it dies, where `setpriv` is there.
    Raises ToolFailed when it cannot be started.
    """
    words = [str(word) for word in argv]
    if setpriv := find_program("setpriv"):
        words = [setpriv, "--pdeathsig", "KILL", *words]
    with log_path.open("wb") as output:
        try:
            child = subprocess.Popen(
                words,
                env=dict(env) if env is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            message = f"cannot run {words[0]}: {error.strerror}"
            raise ToolFailed(message, hint="check that it is installed") from error
    try:
        yield child.poll
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
