"""The variables that activation sets, where conda notes them in an environment."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

STATE = "conda-meta/state"
PACKAGE_VARIABLES = "etc/conda/env_vars.d"
UNSET = "***unset***"
"""What conda writes for a variable that activation unsets."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MOST_FILE_BYTES = 1 << 20
MOST_VALUE_BYTES = (128 << 10) - 4096
"""MAX_ARG_STRLEN of Linux less room for a name: execve(2) refuses a longer one."""


def read_variables(tree: Path) -> dict[str, str]:
    """Return what conda sets when it activates an environment: by packages, then by its user."""
    found: dict[str, Any] = {}
    # conda's order: by file name, and the user's own (`state`) win over those of packages.
    for path in sorted(tree.glob(f"{PACKAGE_VARIABLES}/*.json")):
        found.update(read_object(path))
    stated = read_object(tree / STATE).get("env_vars")
    found.update(stated if isinstance(stated, dict) else {})
    variables = {name: str(value) for name, value in found.items()}
    unfit = sorted(name for name, value in variables.items() if not is_fit(name, value))
    if unfit:
        log.warning(
            "activate does not set %s: not a valid variable name", ", ".join(map(repr, unfit))
        )
    return {name: value for name, value in variables.items() if name not in unfit}


def set_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those that have a value in an activated environment, which starts with none."""
    return {name: value for name, value in variables.items() if value != UNSET}


def is_fit(name: str, value: str) -> bool:
    """Whether a program can be started with a variable."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return False
    # execve(2) takes strings that a NUL ends, so none can contain one.
    return bool(NAME.fullmatch(name)) and "\0" not in value and size <= MOST_VALUE_BYTES


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one, and a warning, without one."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            log.warning("%s is not read: it is longer than %d bytes", path, MOST_FILE_BYTES)
            return {}
        return decode_json(path.read_bytes(), dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s is not read: %s", path, error)
        return {}
