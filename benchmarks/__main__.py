"""Run all benchmarks: `make bench`, `make bench ENV=reference`, `python -m benchmarks archive`."""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import environments
from benchmarks.comparing import Result, table
from benchmarks.modules import MODULES, run_module

ENVIRONMENTS = {
    "small": environments.small,
    "medium": environments.medium,
    "reference": environments.reference,
}


def main() -> None:
    """Run the benchmarks that are named, all of them by default, and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--env", choices=tuple(ENVIRONMENTS), default="small")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    environment = ENVIRONMENTS[arguments.env]()
    found: list[Result] = []
    for name in arguments.modules or MODULES:
        # In a process of its own: a command's peak memory counts from what its parent holds.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found += pool.submit(run_module, name, environment).result()
    if arguments.json:
        rows = {result.name: result.row for result in found}
        arguments.json.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{table(found)}\n")


if __name__ == "__main__":
    main()
