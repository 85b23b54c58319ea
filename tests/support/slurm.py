"""A Slurm cluster on this machine: slurmctld, and a slurmd in namespaces for each node."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cli_runner import ENVFERRY
from tests.support.nginx import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdLogFile={folder}/%n.log
SlurmctldLogFile={folder}/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
PrologFlags=Alloc
Prolog={prolog}
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("slurmctld", "slurmd", "srun", "sinfo", "unshare")
PROLOG = Path(__file__).parents[2] / "docs/slurm/prolog.sh"
LOGGER = '#!/bin/sh\nshift 3\necho "$*"\n'


def has_slurm() -> bool:
    """Whether Slurm is here, and this process may make nodes of it."""
    return os.geteuid() == 0 and all(map(shutil.which, PROGRAMS))


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A controller and nodes, each with its own name and its own /opt/conda (`node_folder`)."""

    folder: Path
    nodes: tuple[str, ...]

    def node_folder(self, node: str) -> Path:
        """Return what a node has as /opt/conda."""
        return self.folder / node

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a client of the cluster."""
        environ = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        return subprocess.run(words, env=environ, capture_output=True, text=True, check=False)

    def states(self) -> dict[str, str]:
        """Return the state of each node, as sinfo prints it."""
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %t").stdout.splitlines()
        return dict(line.split() for line in lines)

    @contextmanager
    def running(self, prolog: Path) -> Iterator[None]:
        """Run all daemons until the block ends."""
        (self.folder / "state").mkdir()
        ports = [free_port() for _ in self.nodes]
        nodes = "\n".join(
            f"NodeName={node} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        config = CONFIG.format(
            host=socket.gethostname(),
            port=free_port(),
            folder=self.folder,
            prolog=prolog,
            nodes=nodes,
        )
        (self.folder / "slurm.conf").write_text(config)
        with ExitStack() as stack:
            start = ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")]
            stack.enter_context(self.daemon("controller", start))
            for node in self.nodes:
                self.node_folder(node).mkdir()
                stack.enter_context(self.daemon(node, self.node_command(node)))
            wait_until(lambda: set(self.states().values()) == {"idle"}, "all nodes are idle")
            yield

    def node_command(self, node: str) -> list[str]:
        """Return what starts a node: its name and its mounts are its own."""
        bind = shlex.join(["mount", "--bind", str(self.node_folder(node)), "/opt/conda"])
        slurmd = shlex.join(["slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node])
        script = f"mkdir -p /opt/conda && {bind} && hostname {node} && exec {slurmd}"
        return ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script]

    @contextmanager
    def daemon(self, name: str, words: list[str]) -> Iterator[None]:
        """Run a daemon, its output in a file."""
        with (self.folder / f"{name}.out").open("wb") as output:
            process = subprocess.Popen(words, stdout=output, stderr=output)
            try:
                yield
            finally:
                process.terminate()
                end = time.monotonic() + 10
                while process.poll() is None and time.monotonic() < end:
                    time.sleep(0.05)
                process.kill()
                process.wait()


def site_prolog(
    folder: Path, envs_dir: Path | str, envferry: str = f'exec {ENVFERRY} "$@"'
) -> Path:
    """Return the prolog as a site has it: with its settings, and programs in its own folder."""
    programs = folder / "programs"
    programs.mkdir()
    for name, text in (("envferry", f"#!/bin/sh\n{envferry}\n"), ("logger", LOGGER)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    text = PROLOG.read_text()
    assert "\nPATH=/usr/local/bin:" in text
    settings = f"ENVFERRY_REGISTRY={folder}/registry ENVFERRY_ENVS_DIR={envs_dir}"
    text = text.replace("\nPATH=/usr/local/bin:", f"\nexport {settings}\nPATH={programs}:")
    path = folder / "prolog.sh"
    path.write_text(text.replace("sleep 5", "sleep 0.1"))
    path.chmod(0o755)
    return path


def set_checks(prolog: Path, *, run: bool) -> None:
    """Change the site's setting in its prolog: whether an installation runs the checks."""
    text, count = re.subn(
        r"^checks=\w+", f"checks={'yes' if run else 'no'}", prolog.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    prolog.write_text(text)
