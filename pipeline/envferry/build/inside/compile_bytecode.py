"""Compile every module of an environment, the same bytes every time.

Run by the environment's own python (3.7 or newer, standard library only): `SCRIPT PREFIX [HOME
[FILES]]`, where HOME is the path that an environment at PREFIX believes it lives at, if that is
another, and FILES lists the only files to compile, relative to PREFIX and separated by NUL. With
`SCRIPT --modules LIST HOME`, modules are compiled for an environment that they do not lie in: the
file LIST has the source, its path in that environment, and where its byte code goes, for each.

The byte code is marked `unchecked-hash` (PEP 552): no time in it, and no check of the source when
it is loaded. Code objects name their source relative to the prefix, so byte code does not depend on
the environment's name; the import system puts the real path in when it loads a module. A module
whose source holds the prefix gets no byte code: moved elsewhere, it would still say the old one.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

UNCHECKED_HASH = 0b01
CHUNK = 40
IS_REPRODUCIBLE = sys.version_info >= (3, 11)
"""Whether marshal gives equal bytes for equal code."""
WITHOUT_REFERENCES = 2
"""The marshal version whose bytes do not depend on what else the process has interned."""


def encode(code: CodeType) -> bytes:
    """Return a code object as marshal has it, the same bytes in every process.

    Up to 3.10 marshal writes a set in the order that it has in memory, which depends on the hash
    seed and on addresses. From 3.11 on it sorts the encoded items; so do we for the older ones.
    """
    if IS_REPRODUCIBLE:
        return marshal.dumps(code)
    body = marshal.dumps(code, WITHOUT_REFERENCES)
    for items in sets_in(code):
        # marshal's TYPE_FROZENSET, which is not sorted up to 3.10.
        head = b">" + len(items).to_bytes(4, "little")
        encoded = [marshal.dumps(item, WITHOUT_REFERENCES) for item in items]
        body = body.replace(head + b"".join(encoded), head + b"".join(sorted(encoded)))
    return body


def sets_in(code: CodeType) -> Iterator[frozenset[Any]]:
    """Yield the sets among the constants of a code object and of those in it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from sets_in(constant)
        elif isinstance(constant, frozenset):
            yield constant


def compile_source(home: str, path: str, name: str, target: Path) -> str | None:
    """Write the byte code of a module called `name`; return why not when it cannot be compiled."""
    source = Path(path).read_bytes()
    if home.encode() in source:
        if target.exists():
            target.unlink()
        return None
    try:
        # dont_inherit: our own `from __future__ import annotations` would count for that module.
        code = compile(source, name, "exec", dont_inherit=True)
        body = encode(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # Templates and tests of the packages themselves: python cannot import these either.
        return f"{path}: {error}"
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = UNCHECKED_HASH.to_bytes(4, "little")
    # Never written over: what is there may be a hard link into uv's cache or an earlier build.
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    # PEP 552: the magic number, the flags, the hash of the source, the code.
    checksum = importlib.util.source_hash(source)
    temporary.write_bytes(importlib.util.MAGIC_NUMBER + flags + checksum + body)
    temporary.replace(target)
    return None


def compile_chunk(home: str, modules: list[tuple[str, str, str]]) -> list[str]:
    """Compile some modules; return the complaints."""
    faults = [compile_source(home, path, name, Path(target)) for path, name, target in modules]
    return [fault for fault in faults if fault]


def modules_in(prefix: str, chosen: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield all modules below PREFIX/lib/pythonX.Y, or those of a list: source, name, byte code."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # Python without the GIL has `python3.13t`. Behind a link are the modules of the folder itself.
    folders = [one for one in Path(prefix, "lib").glob(f"{version}*") if not one.is_symlink()]
    found = sorted(path for folder in folders for path in folder.rglob("*.py"))
    if chosen:
        names = Path(chosen).read_bytes().split(b"\0")
        wanted = {Path(prefix, os.fsdecode(name)) for name in names}
        found = [path for path in found if path in wanted]
    for path in found:
        if path.is_file():  # not folders, nor links to nothing
            target = importlib.util.cache_from_source(str(path))
            yield str(path), str(path.relative_to(prefix)), target


def listed_modules(listed: str) -> Iterator[tuple[str, str, str]]:
    """Yield the modules of a list: source, name, byte code, each ended by NUL."""
    words = [os.fsdecode(word) for word in Path(listed).read_bytes().split(b"\0")]
    for start in range(0, len(words) - 1, 3):
        path, name, target = words[start : start + 3]
        yield path, name, importlib.util.cache_from_source(target)


def main(prefix: str, home: str, chosen: str = "") -> None:
    """Compile all modules of an environment, or those of a list, on all cores."""
    compile_all(home, list(modules_in(prefix, chosen)))


def compile_all(home: str, modules: list[tuple[str, str, str]]) -> None:
    """Compile modules on all cores; print the complaints."""
    chunks = [modules[start : start + CHUNK] for start in range(0, len(modules), CHUNK)]
    with ProcessPoolExecutor() as pool:
        results = pool.map(compile_chunk, repeat(home), chunks)
        faults = [fault for result in results for fault in result]
    sys.stderr.write("".join(f"not compiled: {fault}\n" for fault in faults))


if __name__ == "__main__":
    # `compile` recurses as deep as expressions are nested.
    sys.setrecursionlimit(5000)
    if sys.argv[1] == "--modules":
        compile_all(sys.argv[3], list(listed_modules(sys.argv[2])))
    else:
        main(sys.argv[1], *(sys.argv[2:] or sys.argv[1:2]))
