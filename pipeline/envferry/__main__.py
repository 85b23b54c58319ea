"""The program: `envferry`, or `python -m envferry`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, also when Ctrl-C comes before it is there."""
    try:
        from envferry.cli.main import main as run_command_line
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    run_command_line()


if __name__ == "__main__":
    main()
