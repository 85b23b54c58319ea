"""A worker process: a request in one file, the answer in another.

What uses rattler works in one: py-rattler 0.28 sometimes dies by a signal when the interpreter
exits. So a worker leaves with `os._exit`, and is judged by the answer that it writes last.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import msgspec

from envferry import process
from envferry.base.json import decode_json
from envferry.config import child_environ
from envferry.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envferry.errors import PipelineError
    from envferry.process import Finished

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A module of envferry that ends in `answer_request`, run as a program."""

    module: str
    scratch: Path
    """A directory that lives as long as the call; the worker starts in it."""
    environ: Mapping[str, str] | None = None
    """Its variables; those that every program gets if None."""
    explain: Callable[[Finished], PipelineError] | None = None
    """What to raise when it left no answer; None: what it said last."""

    def ask(self, request: msgspec.Struct, answer: type[A]) -> A:
        """Return the worker's answer to a request; raise ToolFailed when it left none."""
        request_path, answer_path = self.scratch / "request.json", self.scratch / "answer.json"
        request_path.write_bytes(msgspec.json.encode(request))
        # Two calls may share a scratch: the answer to the first is not one to the second.
        answer_path.unlink(missing_ok=True)
        words = (*process.our_module(self.module), str(request_path), str(answer_path))
        environ = child_environ() if self.environ is None else self.environ
        finished = process.run(words, env=environ, cwd=self.scratch, check=False)
        # An answer appears only when it is whole, so it counts whatever the exit status says.
        if answer_path.exists():
            return decode_json(answer_path.read_bytes(), answer)
        if self.explain:
            raise self.explain(finished)
        raise process.failure([self.module], finished.returncode, finished.stdout, finished.stderr)


GRACE_SECONDS = 30
"""How long a worker has to tidy up when its caller is gone."""


def end_with_caller() -> None:
    """Interrupt this process when its stdin ends, as the one of `process.conversation` does.

    SIGTERM interrupts, too. The stages tidy up as after Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 4096):
        pass
    # Only the main thread runs Python's signal handlers: this makes it raise KeyboardInterrupt.
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(GRACE_SECONDS)
    os._exit(EXIT_INTERRUPTED)


def answer_request(request: type[Q], work: Callable[[Q, Path], msgspec.Struct]) -> NoReturn:
    """Answer the request that this process was started with, and leave; `work` gets the scratch."""
    request_path, answer_path = map(Path, sys.argv[1:])
    answer = work(decode_json(request_path.read_bytes(), request), request_path.parent)
    unfinished = answer_path.with_suffix(".unfinished")
    unfinished.write_bytes(msgspec.json.encode(answer))
    unfinished.replace(answer_path)
    # os._exit neither flushes nor waits for threads that a library has left running.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
