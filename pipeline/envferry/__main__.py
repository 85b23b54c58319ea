"""The program: `envferry`, or `python -m envferry`."""

import os
import sys


def main() -> None:
    """Run the command line, also when Ctrl-C comes before it is there."""
    try:
        from envferry.cli.main import main as run_command_line
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    run_command_line()


def forget_working_directory() -> None:
    """Import nothing from the working directory, which `python -m` searches first.

    Unless that is where this package lies. Python 3.11 has `-P` for it.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  (nothing is imported yet)
    if not getattr(sys.flags, "safe_path", False) and sys.path[0] != root:
        del sys.path[0]


if __name__ == "__main__":
    forget_working_directory()
    main()
