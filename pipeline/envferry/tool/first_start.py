"""Try out the one-file tool where it was just unpacked: a program of its own.

Run once, in the folder of the tree, before the tree gets its final name: what fails here is named,
and nothing of it stays. Afterwards the tree is on the disk, also when the power fails.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from envferry.base.write_back import sync_file_system
from envferry.build.inside import compile_bytecode

NEEDED = (
    "ssl",
    "sqlite3",
    "ctypes",
    "cryptography.hazmat.bindings._rust",
    "blake3",
    "msgspec._core",
    "xxhash",
    "zstandard",
    "urllib3",
    "click",
    "rich",
)
"""What commands import when they need it: each has a library of its own that may not load."""
COMMANDS_OF_HOSTS = ("envferry.cli.fetch", "envferry.cli.install", "envferry.cli.verify")
NOWHERE = "/nonexistent"


def main() -> None:
    """Import all that commands need; compile what was not compiled where the file was made."""
    for name in ("envferry.install.stage", *COMMANDS_OF_HOSTS, *NEEDED):
        importlib.import_module(name)
    tree = Path(sys.prefix)
    # One folder stands for all: a tree is compiled as a whole, or not at all.
    if not (Path(compile_bytecode.__file__).parent / "__pycache__").is_dir():
        compile_bytecode.main(str(tree), NOWHERE)
    # Before the shell script renames the tree: a tree under its final name counts as whole.
    sync_file_system(str(tree))


if __name__ == "__main__":
    main()
