"""The command `tool`: envferry itself as one file for hosts without Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.sha256 import sha256_hex
from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command
from envferry.cli.shared.shared_options import InterpreterOptions, PlatformOptions, SignKeyOptions
from envferry.config import settings
from envferry.errors import TargetOccupied, UsageError
from envferry.names import current_platform
from envferry.trust.host_keys import load_signer

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.tool.run_file import Program


class ToolOptions(InterpreterOptions, PlatformOptions, SignKeyOptions):
    """Which file to write, and for whom."""

    file: Path = argument(metavar="FILE", type=click.Path(path_type=Path))


@command(ToolOptions)
def tool(console: Console, options: ToolOptions) -> None:
    """Write envferry with its own Python as one executable FILE, such as envferry.run.

    On a host, `sh envferry.run install ...` needs sh, tar, gzip and glibc: no Python, no network.
    With --sign-key its signature is written to FILE.attestation.json.
    """
    from envferry.tool.run_file import write_run_file

    if options.file.is_dir():
        message = f"{options.file} is a directory"
        raise TargetOccupied(message, hint=f"name a file: {options.file}/envferry.run")
    signer = load_signer(options.sign_keys)
    content, program = make_run_file(console, options.platform, options.interpreter)
    write_run_file(options.file, content, signer)
    facts = {
        "file": options.file,
        "size": len(content),
        "sha256": sha256_hex(content),
        "platform": program.platform,
        "python": program.python,
        "glibc": "{}.{}".format(*program.glibc),
        "host_libraries": program.host_libraries,
        "signed": signer is not None,
    }
    lines = [
        f"{options.file}: {human_bytes(len(content))}, {needs_words(program)}",
        f"SHA-256 {facts['sha256']}",
        f"on the host run: sh {options.file.name} install NAME@TAG --registry PLACE",
    ]
    console.result(facts, lambda: lines)


def make_run_file(
    console: Console, platform: str, interpreter: Path | None
) -> tuple[bytes, Program]:
    """Return the bytes of the one-file tool for a platform, and what it needs of a host."""
    from envferry.build.downloads import DownloadCache
    from envferry.tool.run_file import build_run_file

    if interpreter is None and platform != current_platform():
        message = f"envferry.run for {platform} needs an interpreter of that platform"
        hint = "unpack a python-build-standalone of it, and name it: --interpreter bin/python3.X"
        raise UsageError(message, hint=hint)
    cache = DownloadCache(settings().cache_dir / "downloads")
    chosen = interpreter or Path(sys.executable)
    return build_run_file(chosen, platform, cache=cache, progress=console.progress)


def needs_words(program: Program) -> str:
    """Say which hosts a run file is for."""
    glibc = "{}.{}".format(*program.glibc)
    others = "".join(f" and {name}" for name in program.host_libraries)
    return f"Python {program.python}, for {program.platform} with glibc {glibc} or newer{others}"
