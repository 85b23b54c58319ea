"""The benchmarks, a module for each stage."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.comparing import Result
    from benchmarks.environments import Environment

MODULES = (
    "archive",
    "lock",
    "build",
    "lead_time",
    "registry",
    "registry_oci",
    "transfers",
    "browse",
    "file_search",
    "start_up",
)


def run_module(name: str, environment: Environment) -> list[Result]:
    """Run the benchmarks of one module; say each figure when it is there."""
    module = importlib.import_module(f"benchmarks.{name}")
    found: list[Result] = []
    for result in module.results(environment):
        found.append(result)
        sys.stderr.write(f"{result.name}: {result.ratio:.2f}\n")
    return found
