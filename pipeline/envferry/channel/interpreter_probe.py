"""Prints, as one JSON line, what `interpreter.py` wants to know of the Python that runs it.

It runs in interpreters that do not have this project, from 3.8 on, and so imports only theirs.
"""

import importlib
import json
import os
import platform
import sys
import sysconfig
from pathlib import Path

OPTIONAL_MODULES = (
    *("bz2", "ctypes", "curses", "dbm.gnu", "hashlib", "lzma", "readline", "sqlite3"),
    *("ssl", "uuid", "venv", "zlib", "zoneinfo"),
)


def importable() -> "list[str]":
    """Return which modules that need a shared library can be imported here."""
    found = []
    for name in OPTIONAL_MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        found.append(name)
    return found


def facts() -> "dict[str, object]":
    """Return where this interpreter keeps its parts and what it is."""
    return {
        "implementation": platform.python_implementation(),
        "version": platform.python_version(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        # CPython has this function only where it was configured with --with-pydebug.
        "debug": hasattr(sys, "gettotalrefcount"),
        "glibc": platform.libc_ver()[0] == "glibc",
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        # Behind all links: libraries and the standard library are looked for from there.
        "executable": str(Path(sys.executable).resolve()),
        "configured_prefix": sysconfig.get_config_var("prefix") or "",
        # New in Python 3.9; Fedora's is `lib64`.
        "library_directory": getattr(sys, "platlibdir", "lib"),
        "standard_library": str(Path(os.__file__).resolve().parent),
        "headers": sysconfig.get_path("include"),
        "pkgconfig": sysconfig.get_config_var("LIBPC") or "",
        "multiarch": sysconfig.get_config_var("MULTIARCH") or "",
        "purelib": sysconfig.get_path("purelib"),
        "search_path": sys.path,
        "modules": importable(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
