"""Interrupt commands and wait for their end."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

    from tests.support.cli_runner import CliRunner


def interrupted(host: CliRunner, number: int, hangs: threading.Event, *words: str) -> str:
    """Run a command until a server hangs, interrupt it, and return what it said on stderr."""
    argv, environ = host.command(*words)
    with subprocess.Popen(
        argv, cwd=host.home, env=environ, stderr=subprocess.PIPE, text=True
    ) as child:
        while not hangs.wait(0.1):
            assert child.poll() is None, f"it ended before a server hung: {child.communicate()[1]}"
        time.sleep(0.3)
        child.send_signal(number)
        # The server hangs until the test is over: ending at all shows that nobody waits for it.
        _, said = child.communicate()
    assert (child.returncode, "Traceback" in said) == (130, False), said
    return said
