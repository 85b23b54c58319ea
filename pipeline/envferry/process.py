"""Run other programs: the only place that starts processes."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec

from envferry.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

# What libraries that start programs themselves raise; conda-lock does.
CalledProcessError = subprocess.CalledProcessError

ERROR_LINES = 25
OUR_MODULE = """\
import sys
sys.path[:] = sys.argv.pop(1).splitlines() or [path for path in sys.path if path]
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Runs a module of ours. `-m` would search the working directory first, and Python 3.10 has no `-P`
against that; `-I` would lose the hash seed of a build."""
# With `sh -c`, the first word after the script is $0: here the file, not a program's name.
OUTPUT_TO_FILE = 'exec "$@" >"$0" 2>&1'
STOP_SECONDS = 10
LONGEST_SHOWN = 3
_running: set[subprocess.Popen[str]] = set()


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What a program left behind."""

    returncode: int
    stdout: str
    stderr: str


def find_program(name: str) -> str | None:
    """Return the absolute path of `name` on PATH, or None.

    Relative entries of PATH are skipped: what lies in the current directory is not a tool.
    """
    return shutil.which(name, path=os.pathsep.join(filter(os.path.isabs, os.get_exec_path())))


def our_module(name: str, *, python: str | None = None) -> tuple[str, ...]:
    """Return the command line that runs a module of envferry as a program, and no other's.

    It imports from where this process imports. With `python`, a container's, it imports from where
    that one does by itself, but never from the working directory.
    """
    paths = "" if python else "\n".join(path for path in sys.path if path)
    return (python or sys.executable, "-c", OUR_MODULE, paths, name)


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    show: bool = False,
) -> Finished:
    """Run `argv` to its end and return its output.

    With `show`, the program's stderr goes straight to ours (progress, logs). When this process is
    interrupted the program is stopped before the interrupt travels on.
    Raises ToolFailed when it cannot be started or, with `check`, when it exits with non-zero.
    """
    child = _start([str(word) for word in argv], env=env, cwd=cwd, show=show)
    return _finish(child, check=check)


def run_to_its_end(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Finished:
    """Run `argv` until it ends itself, whatever it left running; `stdout` is all that it said.

    `run` would wait until the last process that holds its output has ended.
    """
    with tempfile.NamedTemporaryFile("r", errors="replace") as output:
        # The redirection closes our pipes in the program and in all that it starts: `communicate`
        # sees their end as soon as this one process has ended, whatever it leaves running.
        words = ("/bin/sh", "-c", OUTPUT_TO_FILE, output.name, *argv)
        finished = run(words, env=env, cwd=cwd, check=False)
        return Finished(returncode=finished.returncode, stdout=output.read(), stderr="")


def run_until_caller_ends(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    show: bool = False,
) -> Finished:
    """Run `argv` like `run`, its stdin a pipe that ends when this process does.

    So a container behind a daemon notices when this process ends, however it ends.
    """
    reading, writing = os.pipe()
    try:
        # The writing end is not inherited (PEP 446): ours is the only one, so the program's stdin
        # ends with this process, even after SIGKILL.
        child = _start([str(word) for word in argv], env=env, stdin=reading, show=show)
        return _finish(child, check=check)
    finally:
        os.close(reading)
        os.close(writing)


def feed(argv: Sequence[str | Path], chunks: Iterable[bytes | memoryview]) -> Finished:
    """Run `argv` to its end with these bytes as its stdin, written as they come.

    Raises ToolFailed when it fails, however much it has read, and what making the bytes raises.
    """
    reading, writing = os.pipe()
    # Unbuffered: closing it after a broken pipe must not flush, and so fail, once more.
    with os.fdopen(writing, "wb", buffering=0) as stream:
        try:
            child = _start([str(word) for word in argv], stdin=reading, show=False)
        finally:
            os.close(reading)
        try:
            with suppress(BrokenPipeError):  # it says itself why it ended
                for chunk in chunks:
                    # A raw stream may take less than it is given.
                    view = memoryview(chunk)
                    while view:
                        view = view[stream.write(view) :]
        except BaseException:
            with child:
                stop(child)
            raise
        stream.close()
        return _finish(child, check=True)


def stop_running_programs() -> None:
    """Stop the programs that threads still wait for, when the threads are abandoned."""
    for child in tuple(_running):
        stop(child)


def _start(
    words: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    show: bool,
) -> subprocess.Popen[str]:
    log.info("+ %s", shlex.join(words))
    try:
        return subprocess.Popen(
            words,
            executable=_program(words[0]),
            env=dict(env) if env is not None else None,
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise _cannot_start(words, env, error) from error


def _cannot_start(words: list[str], env: Mapping[str, str] | None, error: OSError) -> ToolFailed:
    message = f"cannot run {words[0]}: {error.strerror}"
    if error.errno != errno.E2BIG:
        return ToolFailed(message, hint="run `envferry doctor` to see what is missing")
    # Of words such as `NAME=VALUE` the name says enough, and a value may be a secret.
    # execve(2) counts arguments and variables together, and also limits each single one.
    named = [(name, len(os.fsencode(text))) for name, text in (env or os.environ).items()]
    named += [(word.partition("=")[0][:60], len(os.fsencode(word))) for word in words]
    longest = sorted(named, key=lambda item: -item[1])[:LONGEST_SHOWN]
    shown = ", ".join(f"{name} ({size:,} bytes)" for name, size in longest)
    total = sum(size for _, size in named)
    return ToolFailed(
        f"{message}: its environment variables and arguments have {total:,} bytes in all",
        hint=f"shorten or unset some variables; the longest are {shown}",
    )


def _program(word: str) -> str:
    """Return the path of a program; a bare name is never looked up in the current directory."""
    if "/" in word:
        return word
    found = find_program(word)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), word)
    return found


def _finish(child: subprocess.Popen[str], *, check: bool) -> Finished:
    _running.add(child)
    try:
        stdout, stderr = child.communicate()
    except BaseException:
        stop(child)
        raise
    finally:
        _running.discard(child)
    if check and child.returncode != 0:
        words = child.args if isinstance(child.args, list) else [str(child.args)]
        raise failure(words, child.returncode, stdout, stderr or "")
    return Finished(returncode=child.returncode, stdout=stdout, stderr=stderr or "")


class Conversation(msgspec.Struct, frozen=True):
    """A program that talks in lines, for as long as its caller listens."""

    child: subprocess.Popen[str]

    def lines(self) -> Iterator[str]:
        """Yield what it says, line by line, until it ends."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            yield line.rstrip("\n")

    def end(self) -> int:
        """Close its stdin, which tells it to end; return its exit status."""
        assert self.child.stdin is not None
        with suppress(BrokenPipeError):
            self.child.stdin.close()
        try:
            return self.child.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            stop(self.child)
            return self.child.returncode


@contextmanager
def conversation(
    argv: Sequence[str | Path],
    *,
    log_path: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Conversation]:
    """Run `argv` while the block runs; its stderr goes to `log_path`.

    Its stdin is a pipe that ends with the block, and with this process, however that ends: the
    program is to end then, too (`worker_process.end_with_caller`). A session of its own keeps a
    terminal's Ctrl-C from it. Raises ToolFailed when it cannot be started.
    """
    words = [str(word) for word in argv]
    log.info("+ %s", shlex.join(words))
    with log_path.open("wb") as errors:
        try:
            child = subprocess.Popen(
                words,
                executable=_program(words[0]),
                env=dict(env) if env is not None else None,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            message = f"cannot run {words[0]}: {error.strerror}"
            hint = "run `envferry doctor` to see what is missing"
            raise ToolFailed(message, hint=hint) from error
    talk = Conversation(child)
    _running.add(child)
    try:
        yield talk
    finally:
        _running.discard(child)
        talk.end()
        assert child.stdout is not None
        child.stdout.close()


def failure(words: Sequence[str], returncode: int, stdout: str, stderr: str) -> ToolFailed:
    """Describe a failed program by the last lines that it printed."""
    lines = (stderr.strip() or stdout.strip()).splitlines()[-ERROR_LINES:]
    ended = f"exited with {returncode}"
    # How `subprocess` says that a signal ended a program.
    if returncode < 0:
        ended = f"was killed by signal {-returncode}"
    message = "\n".join([f"{words[0]} {ended}", *("  " + line for line in lines)])
    return ToolFailed(message, hint="run it again with -v to see the whole command")


def stop(child: subprocess.Popen[str]) -> None:
    """Ask a program to end, and end it when it does not."""
    child.terminate()
    try:
        child.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def replace_process(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by a program: its signals and its exit status are the program's.

    Raises ToolFailed when it cannot be started.
    """
    log.info("+ exec %s", shlex.join(argv))
    # What Python has buffered would be lost with this process's memory.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python ignores these, and a program would inherit that.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execve(argv[0], list(argv), dict(environ))
    except OSError as error:
        message = f"cannot run {argv[0]}: {error.strerror}"
        raise ToolFailed(message, hint="check that it is installed") from error
