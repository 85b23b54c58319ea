"""Commands load what they need when they need it: hosts start them often."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""
LATE = (
    "envferry.api",
    "envferry.index.database",
    "envferry.lock.stage",
    "envferry.pack.stage",
    "sqlite3",
)
LOADED_BY_COMMAND = """
import contextlib, io, sys
from envferry.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    run(sys.argv[1:])
print(*sorted(sys.modules))
for name, module in sorted(sys.modules.items()):
    if name.startswith("envferry."):
        for item in vars(module).values():
            if isinstance(item, type) and item.__module__ == name:
                if "__dataclass_fields__" in vars(item):
                    print(item.__name__)
"""
ON_HOSTS = (
    "checks",
    "du",
    "fetch",
    "follow",
    "history",
    "image",
    "install",
    "list",
    "remove",
    "rollback",
    "run",
    "shell",
    "status",
    "verify",
)
LIBRARIES = {"blake3", "click", "msgspec", "typing_extensions", "xxhash", "zstandard"}
"""Of others than Python's: what a command on a host may load before it knows what to do."""
SLOW = {"email", "envferry.registry.registry", "http", "importlib.metadata", "json", "ssl"}
"""What takes milliseconds that most commands on a host need not spend."""
DATACLASSES = {"Secret", "SiteIndex"}
"""Each costs half a millisecond at every start: Python compiles their methods then."""


def output_of(*arguments: str) -> str:
    """Return what Python prints, without what measures coverage: that loads modules of its own."""
    environ = {name: os.environ[name] for name in os.environ if not name.startswith("COVERAGE_")}
    argv = [sys.executable, *arguments]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, env=environ).stdout


@pytest.mark.parametrize(
    "module",
    [
        *("build", "check", "fetch", "follow", "install", "pack", "prune", "push"),
        *("release", "remove", "rollback", "verify"),
    ],
)
def test_a_command_is_described_without_what_it_runs(module: str) -> None:
    assert output_of("-c", LOADED, f"envferry.cli.{module}", *LATE) == "\n"


def loaded_by(*arguments: str | Path) -> tuple[set[str], set[str]]:
    """Return the modules that a command has loaded, and the dataclasses of ours in them."""
    output = output_of("-c", LOADED_BY_COMMAND, *map(str, arguments))
    modules, *dataclasses = output.splitlines()
    return set(modules.split()), set(dataclasses)


def libraries_among(modules: set[str]) -> set[str]:
    """Return the libraries of others, but for those that Python itself loads at its start."""
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    at_start = output_of("-c", "import sys; print(*sys.modules)")
    started = {name.partition(".")[0] for name in at_start.split()}
    return {name for name in tops if not name.startswith("_")} - started - {"envferry"}


@pytest.mark.parametrize("command", ON_HOSTS)
def test_a_command_of_hosts_starts_with_little(command: str) -> None:
    modules, dataclasses = loaded_by(command, "--help")
    assert "envferry.cli.shared.command" in modules
    assert libraries_among(modules) <= LIBRARIES
    assert modules & SLOW == set()
    assert dataclasses <= DATACLASSES


@pytest.mark.parametrize(
    ("command", "reader"),
    [("list", "envferry.install.host.host_overview"), ("status", "envferry.install.host.status")],
)
def test_what_is_installed_is_read_without_a_registry(
    command: str, reader: str, tmp_path: Path
) -> None:
    modules, dataclasses = loaded_by(command, "--envs-dir", tmp_path)
    assert reader in modules
    assert libraries_among(modules) <= LIBRARIES
    assert modules & (SLOW - {"json"}) == set()
    assert dataclasses - DATACLASSES <= {"PublicKey", "SigningKey", "Trust"}
