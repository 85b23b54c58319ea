"""First lines of scripts that the kernel would cut off or not understand."""

from __future__ import annotations

import re

KERNEL_LIMIT = 127
"""Linux before 5.1 reads 128 bytes of a `#!` line, the last one for NUL (BINPRM_BUF_SIZE); later
ones 256. Hosts with the old one are still about (RHEL 8 has 4.18)."""

LONGEST_LINE = 4096
"""No first line is longer: where none ends, looking for a program takes time in its square."""

SHEBANG = re.compile(rb"#![ \t]*(?P<program>/[^\n]*?/bin/[^\s/]+)(?P<rest>[^\n]*)\n")
PYTHON = re.compile(rb"python[0-9.]*w?|pypy[0-9.]*")


def with_short_shebang(content: bytes, prefix: bytes) -> bytes:
    """Return a script whose first line starts an interpreter under `prefix` wherever it lies.

    Lines that fit stay. Of the others, Python's become the `/bin/sh` trampoline that pip and uv
    write as well: what the shell executes is a string for Python. Any other interpreter is looked
    up on PATH, as conda does (conda/core/portability.py, replace_long_shebang).
    """
    match = SHEBANG.match(content, 0, LONGEST_LINE)
    if not match or not match["program"].startswith(prefix + b"/"):
        return content
    if len(match[0].rstrip(b"\n")) <= KERNEL_LIMIT and b" " not in match["program"]:
        return content
    program, rest = match["program"], match["rest"]
    name = program.rpartition(b"/")[2]
    if not PYTHON.fullmatch(name) or b"'" in program:
        # Without -S, env would take program and option for one name (coreutils before 8.30 do).
        split = b"-S " if rest.strip() else b""
        return b"#!/usr/bin/env " + split + name + rest + b"\n" + content[match.end() :]
    quoted = b'"' + program + b'"' if b" " in program else program
    line = b"#!/bin/sh\n'''exec' %b%b \"$0\" \"$@\"\n' '''\n" % (quoted, rest.rstrip())
    return line + content[match.end() :]
