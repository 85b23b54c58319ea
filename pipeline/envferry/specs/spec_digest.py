"""The digest of what decides a spec's lock."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from envferry.errors import SpecError
from envferry.specs.spec_faults import shorten
from envferry.specs.syntax.pip_lines import pip_line_problem
from envferry.specs.syntax.requirement_lines import INCLUDE, included_lines, relative
from envferry.specs.syntax.selectors import selector_lines
from envferry.specs.syntax.yaml_text import line_of, read_text

if TYPE_CHECKING:
    from envferry.models import Spec

DIGEST_SCHEMA = 1
FILE_OPTION = re.compile(r"(?:-[rc]|--(?:requirement|constraint)s?)(?:\s+|=)?(?P<path>\S+)")


def spec_digest(spec: Spec, text: str) -> str:
    """Return the BLAKE3 of what decides the lock, in hex.

    The canonical form, schema 1: a JSON object, keys sorted, no blanks, of `schema` (1), `conda`
    and `pip` (the lines as written, stripped, in their order; lines for one conda package joined),
    `channels`, `platforms` (both as written, but for platforms that are kept aside; empty when the
    spec names none), `system` (the given ones of archspec, cuda, cuda_arch, glibc), and only where
    there are any: `channel_names` (the table `envferry: channels:`), `channel_priority`, `data`,
    `selectors` (the stripped lines that carry one), `files` (the BLAKE3 of each local file that a
    `-r` or `-c` line names).
    """
    form: dict[str, Any] = {
        "schema": DIGEST_SCHEMA,
        "conda": [str(line) for line in spec.conda],
        "pip": [str(line) for line in spec.pip],
        "channels": spec.channels,
        "platforms": spec.options.platforms,
        "system": {
            name: value
            for name, value in msgspec.structs.asdict(spec.options.system).items()
            if value
        },
    }
    # Digests stand in published locks: a key that few specs have is added only where it has a
    # value, so that all other digests stay as they are.
    if spec.options.channels:
        form["channel_names"] = dict(spec.options.channels)
    if spec.options.data:
        form["data"] = spec.options.data
    if spec.options.channel_priority:
        form["channel_priority"] = spec.options.channel_priority
    selectors = [line for _, line, _ in selector_lines(text)]
    files = named_files(spec)
    form |= {"selectors": selectors} if selectors else {}
    form |= {"files": files} if files else {}
    return blake3(msgspec.json.encode(form, order="sorted")).hexdigest()


def named_files(spec: Spec) -> dict[str, str]:
    """Return the digest of each requirement file that the pip half reads, by how it is named."""
    files: dict[str, str] = {}
    for line in spec.pip:
        option = FILE_OPTION.fullmatch(line)
        if option and "://" not in option["path"]:
            # The bytes of the files count, too: an edited list needs another lock.
            path = _existing(spec, line, option["path"])
            files[option["path"]] = blake3(path.read_bytes()).hexdigest()
            if INCLUDE.fullmatch(line):
                files |= _included_files(path, spec.path.parent)
    return files


def _included_files(path: Path, base: Path) -> dict[str, str]:
    """Check every line of a requirements file; return the digests of those that it includes."""
    lines = included_lines(path, read_text(path), base)
    for line in lines:
        problem = pip_line_problem(line.text)
        if problem:
            place = f"{line.path}:{line.number}"
            message = f"{place}: {shorten(line.text)} is not a valid pip requirement: {problem}"
            raise SpecError(message, hint="write it as `name==version` or `name @ URL`")
    inner = dict.fromkeys(line.path for line in lines if line.path != path)
    return {relative(item, base): blake3(item.read_bytes()).hexdigest() for item in inner}


def _existing(spec: Spec, line: str, name: str) -> Path:
    path = spec.path.parent / name
    if not path.is_file():
        # Joined as text: `specs/../x` is x, although there may be no specs/ yet.
        path = Path(os.path.normpath(path))
    if not path.is_file():
        message = f"{spec.path}:{line_of(line)}: `{line}` names {path}, which does not exist"
        raise SpecError(message, hint="correct the path; it starts from the spec's folder")
    return path
