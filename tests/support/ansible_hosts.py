"""Hosts for Ansible on this machine: each has its own /etc, /opt/conda and /opt/envferry."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PLAYBOOK = Path(sys.prefix) / "ansible/bin/ansible-playbook"
"""Ansible has a virtual environment of its own (bootstrap.sh ansible)."""
COLLECTIONS = ROOT / "pipeline"
OWN = {"etc": "/etc", "conda": "/opt/conda", "tool": "/opt/envferry"}
"""What each host has for itself, by the name of the folder that stands for it."""
SYSTEM_FILES = ("passwd", "group", "nsswitch.conf", "hosts", "ld.so.cache", "ssl")


@dataclass(frozen=True, kw_only=True)
class AnsibleHost:
    """One host: a mount namespace, entered by what Ansible takes for the host's Python."""

    name: str
    folder: Path
    is_lost: bool = False
    """Whether nobody can log in any more."""

    @classmethod
    def make(cls, folder: Path, name: str) -> AnsibleHost:
        """Make a host in a folder that all hosts share, which has the registry, too."""
        host = cls(name=name, folder=folder / name)
        for part in OWN:
            (host.folder / part).mkdir(parents=True)
        (host.folder / "tool/bin").mkdir()
        for file in SYSTEM_FILES:
            source = Path("/etc", file)
            if source.is_dir():
                shutil.copytree(source, host.folder / "etc" / file, ignore_dangling_symlinks=True,
                                ignore=shutil.ignore_patterns("private"))  # fmt: skip
            elif source.exists():
                shutil.copy(source, host.folder / "etc" / file)
        enter = [*host.enter(folder), sys.executable]
        host.python.write_text(f'#!/bin/sh\nexec {shlex.join(enter)} "$@"\n')
        host.python.chmod(0o755)
        return host

    def enter(self, shared: Path) -> list[str]:
        """Return the command that enters the namespace."""
        words = ["bwrap", "--unshare-pid", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]
        for top in (Path("/"), Path("/opt")):
            for entry in sorted(top.iterdir()):
                if str(entry) in {*OWN.values(), "/opt", "/proc", "/dev", "/tmp", "/sys"}:
                    continue
                if entry.is_symlink():
                    words += ["--symlink", str(entry.readlink()), str(entry)]
                elif entry.is_dir():
                    words += ["--ro-bind", str(entry), str(entry)]
        for part, place in OWN.items():
            words += ["--bind", str(self.folder / part), place]
        words += ["--ro-bind", str(ROOT), str(ROOT), "--tmpfs", "/var/tmp"]
        return [*words, "--bind", str(shared), str(shared)]

    @property
    def python(self) -> Path:
        """The interpreter that Ansible is told of."""
        return self.folder / "python"

    @property
    def variables(self) -> dict[str, str]:
        """What the inventory says of it."""
        if self.is_lost:
            ssh = self.folder / "ssh"
            ssh.write_text("#!/bin/sh\nexit 255\n")
            ssh.chmod(0o755)
            return {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh)}
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": str(self.python),
            "ansible_remote_tmp": str(self.folder / "tmp"),
        }

    @property
    def envs(self) -> Path:
        """The host's /opt/conda/envs."""
        return self.folder / "conda/envs"

    def current(self, name: str = "demo") -> str | None:
        """Return the id that is current."""
        link = self.envs / name
        return link.readlink().name if link.is_symlink() else None


@dataclass(frozen=True, kw_only=True)
class AnsibleSite:
    """A controller and its hosts."""

    folder: Path
    hosts: tuple[AnsibleHost, ...]

    @classmethod
    def make(cls, folder: Path, count: int) -> AnsibleSite:
        """Make hosts `gpu01`, `gpu02`, …."""
        names = [f"gpu{number:02}" for number in range(1, count + 1)]
        return cls(folder=folder, hosts=tuple(AnsibleHost.make(folder, name) for name in names))

    def inventory(self) -> Path:
        """Write the inventory."""
        path = self.folder / "hosts.json"
        hosts = {host.name: host.variables for host in self.hosts}
        path.write_text(json.dumps({"all": {"hosts": hosts}}))
        return path

    def run(
        self, play: str | list[dict[str, Any]], *options: str, expect: int = 0, **variables: Any
    ) -> PlayResult:
        """Run a playbook of the collection, or tasks on all hosts."""
        if not isinstance(play, str):
            path = self.folder / "play.yml"
            tasks = [{"hosts": "all", "gather_facts": False, "tasks": play}]
            path.write_text(yaml.safe_dump(tasks))
            play = str(path)
        argv = [str(PLAYBOOK), "-i", str(self.inventory()), play, *options]
        argv += ["-e", json.dumps({"envferry_become": False, **variables})]
        environ = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_HOME": str(self.folder / "controller"),
            "ANSIBLE_STDOUT_CALLBACK": "default",
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_FORKS": "4",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }
        finished = subprocess.run(
            argv, cwd=self.folder, env=environ, capture_output=True, text=True, check=False
        )
        assert finished.returncode == expect, finished.stdout + finished.stderr
        return PlayResult(text=finished.stdout, errors=finished.stderr)


@dataclass(frozen=True, kw_only=True)
class PlayResult:
    """What a play printed."""

    text: str
    errors: str

    def counts(self, host: str) -> dict[str, int]:
        """Return the recap of a host: ok, changed, failed, …."""
        (line,) = (
            line
            for line in self.text.partition("PLAY RECAP")[2].splitlines()
            if line.split() and line.split()[0] == host
        )
        pairs = (word.partition("=") for word in line.partition(":")[2].split())
        return {name: int(count) for name, _, count in pairs}

    def is_untouched(self, host: str) -> bool:
        """Whether a host had no turn."""
        return host not in self.text.partition("PLAY RECAP")[2]
