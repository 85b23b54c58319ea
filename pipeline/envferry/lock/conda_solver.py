"""A conda-compatible solver on rattler: as much of `conda create --dry-run` as conda-lock calls.

Speaks conda's JSON: `{"actions": {"FETCH": […], "LINK": […]}}` with exit code 0, or
`{"message": …}` with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rattler import (
    ChannelPriority,
    GenericVirtualPackage,
    PackageName,
    Version,
    exceptions,
    solve,
)
from rattler.package import BuildString

from envferry.base.json import decode_json
from envferry.config import child_environ
from envferry.lock.direct_lines import DirectLineError, check_answer, check_priority, direct_lines
from envferry.lock.rattler_channels import channel_sources, open_gateway
from envferry.lock.solver_preferences import Preferences
from envferry.models import current_platform, without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rattler import Gateway, RepoDataRecord

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
EXPECTED_ERRORS = (
    DirectLineError,
    exceptions.FetchRepoDataError,
    exceptions.GatewayError,
    exceptions.InvalidChannelError,
    exceptions.InvalidMatchSpecError,
    exceptions.InvalidVersionError,
    exceptions.IoError,
    exceptions.SolverError,
)


def main(arguments: Sequence[str]) -> int:
    """Answer one call of conda-lock; return the exit code."""
    options, unknown = _parser().parse_known_intermixed_args(arguments)
    command, *specs = options.words or [""]
    if options.version:
        sys.stdout.write(f"conda {CONDA_VERSION}\n")
        return 0
    if command != "create" or unknown:
        return _fail(f"this solver only knows `create --dry-run --json`, not {list(arguments)}")
    environ = child_environ()
    platform = environ.get("CONDA_SUBDIR") or current_platform()
    try:
        records = asyncio.run(_solve(options, specs, platform, environ))
    except EXPECTED_ERRORS as error:
        return _fail(str(error), type(error).__name__)
    actions = [_action(record) for record in records if not record.name.normalized.startswith("__")]
    actions.sort(key=lambda action: str(action["name"]))
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
            packages[name] = ("1", text) if name == "__archspec" else (text, "0")
    if "__cuda" not in packages:
        packages.pop("__cuda_arch", None)  # CEP 46
    return packages


async def _solve(
    options: argparse.Namespace, specs: Sequence[str], platform: str, environ: Mapping[str, str]
) -> list[RepoDataRecord]:
    preferences = _read_preferences(options.preferences)
    channels = [preferences.channels.get(channel, channel) for channel in options.channels]
    sources, gateway = channel_sources(channels), open_gateway()
    kept, pinned = await _kept_records(preferences, sources, gateway, platform)
    newest = preferences.exclude_newer
    lines = preferences.specs or specs
    asked = direct_lines(_located(line, channels) for line in lines)
    await check_priority(asked, dict(zip(channels, sources, strict=True)), gateway, platform)
    records: list[RepoDataRecord] = await solve(
        sources=sources,
        specs=[match for line in asked for match in line.matches],
        gateway=gateway,
        platforms=[platform, "noarch"],
        locked_packages=kept,
        pinned_packages=pinned,
        virtual_packages=[
            GenericVirtualPackage(PackageName(name), Version(version), BuildString(build))
            for name, (version, build) in virtual_packages(platform, environ).items()
        ],
        channel_priority=ChannelPriority.Strict,
        channel_relations="disabled",
        exclude_newer=_moment(newest) if newest else None,
        # Channels of one's own rarely say when a package came: those are taken as they are.
        timestamp_policy="allow-missing",
    )
    check_answer(asked, records)
    return records


def _located(spec: str, channels: Sequence[str]) -> str:
    """Say with its login which channel stands before `::`."""
    name, colons, rest = spec.partition("::")
    full = next((item for item in channels if without_credentials(item) == name), None)
    return f"{full.rstrip('/')}::{rest}" if colons and full and name not in channels else spec


def _read_preferences(path: str | None) -> Preferences:
    if path is None:
        return Preferences()
    return decode_json(Path(path).read_bytes(), Preferences)


def _moment(text: str) -> datetime:
    """Return a date or time; what names no zone is UTC."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


async def _kept_records(
    preferences: Preferences, sources: list[Any], gateway: Gateway, platform: str
) -> tuple[list[RepoDataRecord], list[RepoDataRecord]]:
    """Return the records of what is kept: those that should stay, and those that must."""
    if not preferences.kept:
        return [], []
    names = {url.rsplit("/", 1)[-1].rsplit("-", 2)[0] for url in preferences.kept}
    found = await gateway.query(
        sources,
        [platform, "noarch"],
        sorted(names),
        recursive=False,
        channel_relations="disabled",
    )
    urls = {*preferences.kept}
    records = [
        record for source in found for record in source if without_credentials(record.url) in urls
    ]
    if not preferences.updated:
        return records, []
    moving = {name.lower() for name in preferences.updated}
    staying = [record for record in records if record.name.normalized not in moving]
    return staying, staying


def _action(record: RepoDataRecord) -> dict[str, Any]:
    """Describe a record as conda describes what it would fetch."""
    fields: dict[str, Any] = json.loads(record.to_json())
    return {
        **fields,
        "fn": record.file_name,
        "url": without_credentials(record.url),
        "channel": without_credentials(record.channel or ""),
        "dist_name": record.file_name.removesuffix(".conda").removesuffix(".tar.bz2"),
        "build_string": fields.get("build"),
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
    parser.add_argument("--preferences")
    for flag in ("--dry-run", "--json", "--override-channels"):
        parser.add_argument(flag, action="store_true")
    return parser


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's exit: py-rattler 0.28 sometimes crashes there.
    os._exit(code)
