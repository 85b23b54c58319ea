"""Run all benchmarks: `make bench`, `make bench ENV=reference`, `python -m benchmarks archive`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks import environments
from benchmarks.comparing import Result, table

MODULES = ("archive", "lock", "build", "registry", "carrying", "browse", "start_up")


def main() -> None:
    """Run the benchmarks that are named, all of them by default, and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--env", choices=("small", "reference"), default="small")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    environment = environments.reference() if arguments.env == "reference" else environments.small()
    found: list[Result] = []
    for name in arguments.modules or MODULES:
        module = importlib.import_module(f"benchmarks.{name}")
        for result in module.results(environment):
            found.append(result)
            sys.stderr.write(f"{result.name}: {result.ratio:.2f}\n")
    if arguments.json:
        rows = {result.name: result.row for result in found}
        arguments.json.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{table(found)}\n")


if __name__ == "__main__":
    main()
