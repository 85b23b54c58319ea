#!python
"""The command `envferry`, as installers put it into `bin/`: a copy of this very file.

Entries of PYTHONPATH come before site-packages, so a folder `envferry` in one of them, common where
CI exports a checkout, would hide the installed package. Here they come after it.
"""

import os
import sys


def put_installed_first(search_path: list[str], named: str, script_dir: str) -> list[str]:
    """Return the search path, what PYTHONPATH names last, and without the script's directory."""
    later = [os.path.abspath(entry) for entry in named.split(os.pathsep)] if named else []
    kept = [path for path in search_path if path not in ("", script_dir)]
    return [
        *(path for path in kept if os.path.abspath(path) not in later),
        *(path for path in kept if os.path.abspath(path) in later),
    ]


if __name__ == "__main__":
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = put_installed_first(sys.path, os.environ.get("PYTHONPATH", ""), here)
    from envferry.__main__ import main

    main()
