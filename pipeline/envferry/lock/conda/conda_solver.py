"""A conda-compatible solver on rattler: as much of `conda create --dry-run` as conda-lock calls.

Speaks conda's JSON: `{"actions": {"FETCH": […], "LINK": […]}}` with exit code 0, or
`{"message": …}` with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envferry.config import child_environ
from envferry.errors import PipelineError
from envferry.lock.conda.repodata import cached_indexes, extract
from envferry.lock.conda.solving import SolveAnswer, SolveRequest, work
from envferry.lock.conda.spec_lines import requested_package
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# conda-lock asks for the version to tell conda from micromamba; this one knows `--json`.
CONDA_VERSION = "24.11.0"

# The virtual packages that a CONDA_OVERRIDE_… variable sets, by the variable's ending.
OVERRIDES = {
    "GLIBC": "__glibc",
    "CUDA": "__cuda",
    "LINUX": "__linux",
    "OSX": "__osx",
    "ARCHSPEC": "__archspec",
    "CUDA_ARCH": "__cuda_arch",
}


def main(arguments: Sequence[str]) -> int:
    """Answer one call of conda-lock; return the exit code."""
    options, unknown = _parser().parse_known_intermixed_args(arguments)
    command, *specs = options.words or [""]
    if options.version:
        sys.stdout.write(f"conda {CONDA_VERSION}\n")
        return 0
    # Refused, not ignored: an option that is unknown here might change the answer.
    if command != "create" or unknown:
        return _fail(f"this solver only knows `create --dry-run --json`, not {list(arguments)}")
    environ = child_environ()
    platform = environ.get("CONDA_SUBDIR") or current_platform()
    try:
        answer = _solve(options.channels, specs, platform, environ)
    except PipelineError as error:
        return _fail(error.message, type(error).__name__)
    if answer.error:
        return _fail(answer.error, "SolverError")
    actions = [_action(record) for record in answer.records]
    json.dump({"success": True, "actions": {"FETCH": actions, "LINK": actions}}, sys.stdout)
    return 0


def virtual_packages(platform: str, environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the virtual packages of `platform`: name to version and build string.

    What a machine has is never looked at: the lock is for another one.
    """
    family = platform.partition("-")[0]
    found = {"linux": {"__unix", "__linux"}, "osx": {"__unix"}, "win": {"__win"}}.get(family, set())
    packages = dict.fromkeys(found, ("0", "0"))
    for ending, name in OVERRIDES.items():
        text = environ.get(f"CONDA_OVERRIDE_{ending}", "").strip()
        if text:
            # conda has the microarchitecture in the build string, always of version 1.
            packages[name] = ("1", text) if name == "__archspec" else (text, "0")
    if "__cuda" not in packages:
        packages.pop("__cuda_arch", None)  # CEP 46
    return packages


def _solve(
    channels: Sequence[str], specs: Sequence[str], platform: str, environ: Mapping[str, str]
) -> SolveAnswer:
    wanted = [requested_package(spec, channels) for spec in specs]
    names = [item.name for item in wanted if item.name]
    with tempfile.TemporaryDirectory(prefix="envferry-index-") as directory:
        with cached_indexes() as indexes:
            tiers = extract(indexes, channels, platform, names, Path(directory))
        request = SolveRequest(
            wanted=tuple(wanted),
            tiers=tiers,
            virtual_packages=virtual_packages(platform, environ),
        )
        return work(request)


def _action(record: dict[str, Any]) -> dict[str, Any]:
    """Describe a record as conda describes what it would fetch."""
    file_name = str(record["fn"])
    return {
        **record,
        "dist_name": file_name.removesuffix(".conda").removesuffix(".tar.bz2"),
        "build_string": record.get("build"),
    }


def _fail(message: str, kind: str = "UsageError") -> int:
    answer = {"success": False, "message": message, "exception_name": kind}
    json.dump(answer, sys.stdout)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="conda_solver")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--channel", "-c", action="append", default=[], dest="channels")
    for ignored in ("--prefix", "-p"):
        parser.add_argument(ignored, dest="prefix")
    for flag in ("--dry-run", "--json", "--override-channels"):
        parser.add_argument(flag, action="store_true")
    return parser


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's exit: py-rattler 0.28 sometimes crashes there.
    os._exit(code)
