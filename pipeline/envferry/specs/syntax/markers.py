"""The marker variables (PEP 508) of a python and platform that may not be this machine's."""

from __future__ import annotations

import re

from packaging.requirements import InvalidRequirement, Requirement

from envferry.specs.syntax.pip_lines import requirement_of

PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
"""Those that a marker is asked about where no python is chosen yet."""


def target_environment(python_version: str, platform: str) -> dict[str, str]:
    """Return the marker variables for a python, such as `3.11` or `3.11.7`, on a conda platform."""
    system, _, architecture = platform.partition("-")
    short = ".".join(re.findall(r"\d+", python_version)[:2])
    is_mac = system == "osx"
    full = python_version if python_version.count(".") > 1 else f"{short}.0"
    return {
        "python_version": short,
        "python_full_version": full,
        "implementation_name": "cpython",
        "implementation_version": full,
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "darwin" if is_mac else "linux",
        "platform_system": "Darwin" if is_mac else "Linux",
        "platform_machine": {"64": "x86_64"}.get(architecture, architecture),
        # Not of this machine: the answer is the same wherever it is asked for.
        "platform_release": "",
        "platform_version": "",
        "extra": "",
    }


def applies(line: str, platform: str) -> bool:
    """Whether a line of the pip half is for a platform, with whatever python."""
    try:
        marker = Requirement(requirement_of(line)).marker
    # Paths, options and bare URLs have no marker that could be read here.
    except InvalidRequirement:
        return True
    return marker is None or any(
        marker.evaluate({**target_environment(python, platform)}) for python in PYTHONS
    )
