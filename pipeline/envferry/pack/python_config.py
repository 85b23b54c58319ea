"""`python-config`, told where the environment is.

CPython's script (Misc/python-config.sh.in) looks for itself with `pwd -P` and `readlink -f`. An
environment is used through a link, so it would answer with the folder behind that, which the next
update replaces and the one after it removes.
"""

from __future__ import annotations

import re

SCRIPT = re.compile(r"bin/(?:[\w-]+-)?python[\w.]*-config")
LOOKS_FOR_ITSELF = re.compile(rb'^prefix_real=\$\(installed_prefix "\$0"\)$', re.MULTILINE)
MOST_BYTES = 1 << 20


def fixed_config(path: str, place: str, prefix: str) -> bytes | None:
    """Return a `python-config` that knows its prefix; None for any other file.

    The prefix can be in quotes: it has no characters that shells interpret.
    """
    if not SCRIPT.fullmatch(path):
        return None
    with open(place, "rb") as stream:  # noqa: PTH123  (as for all files of a tree)
        content = stream.read(MOST_BYTES)
    told = f'prefix_real="{prefix}"'.encode()
    fixed = LOOKS_FOR_ITSELF.sub(lambda _: told, content)
    return fixed if fixed != content and len(content) < MOST_BYTES else None
