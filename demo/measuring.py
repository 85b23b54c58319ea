"""Run commands and measure them as whole processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a command took; the peak is that of its largest process."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def measure(
    argv: Sequence[str | Path], *, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> Measured:
    """Run a command, its stderr on ours, and return what it took; end the demo when it fails."""
    words = [str(word) for word in argv]
    sys.stderr.write(f"\n$ {shlex.join(words)}\n")
    sys.stderr.flush()
    started = time.monotonic()
    with subprocess.Popen(
        words, cwd=cwd, env=dict(environ) if environ else None, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    sys.stderr.write(output)
    if child.returncode != 0:
        sys.exit(f"error: {shlex.join(words)} exited with {child.returncode}")
    return Measured(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        output=output,
    )


def tree_bytes(path: Path) -> int:
    """Return the bytes of all files below a directory, or of a file."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())
