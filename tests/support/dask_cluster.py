"""A real Dask scheduler and real workers, each a process that a test may kill."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envferry.names import current_platform
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self

NO_DASHBOARD = ("--dashboard-address", "127.0.0.1:0")
WITH_SITE = """\
import runpy, sys
del sys.argv[0]
sys.path = [path for path in sys.path if path] + [sys.argv.pop(0)]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
LISTENING = re.compile(r"Scheduler at:\s+(\S+)")


@dataclass
class DaskCluster:
    """Processes that end with the block."""

    home: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    protocol: str = "tcp"
    host: str = "127.0.0.1"
    """Where the scheduler listens."""
    address: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.scheduler = self._start(
            "scheduler", "--protocol", self.protocol, "--host", self.host, "--port", "0"
        )
        wait_until(lambda: LISTENING.search(self._said("scheduler")), "the scheduler listens")
        found = LISTENING.search(self._said("scheduler"))
        assert found
        self.address = found[1]
        return self

    def __exit__(self, *_error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.stack.close()

    def worker(
        self, name: str, *, host: str = "127.0.0.1", site: Path | None = None, **environ: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is at work.

        With `site`, it imports what is in that folder instead of what is installed here.
        """
        resources = f"build=1 {current_platform()}=1"
        arguments = ("--nthreads", "1", "--no-nanny", "--resources", resources, "--name", name)
        where = ("--host", host)
        process = self._start(
            "worker", self.address, *arguments, *where, log=name, site=site, **environ
        )
        wait_until(lambda: "Registered to" in self._said(name), f"the worker {name} is registered")
        return process

    def _start(
        self, what: str, *arguments: str, log: str = "", site: Path | None = None, **environ: str
    ) -> subprocess.Popen[bytes]:
        python = [sys.executable, "-m"]
        if site:
            python = [sys.executable, "-S", "-c", WITH_SITE, str(site)]
        words = [*python, f"distributed.cli.dask_{what}", *arguments, *NO_DASHBOARD]
        output = self.stack.enter_context((self.home / f"{log or what}.log").open("wb"))
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=output,
            cwd=self.home,
            env={**os.environ, **self.environ, **environ},
        )
        self.processes.append(process)
        return process

    def _said(self, what: str) -> str:
        return (self.home / f"{what}.log").read_text()
