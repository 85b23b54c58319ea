"""The one file: a shell script, and behind it the tool's tree as a compressed tar."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import envferry
from envferry.base.files import atomic_write, write_bytes
from envferry.base.sha256 import sha256_hex
from envferry.tool.tool_python import LOADERS
from envferry.tool.tree import build_tool_tree
from envferry.transfer.host_tool import MACHINES
from envferry.trust.signed_files import attestation_of
from envferry.trust.tool_signature import attest_run_file

if TYPE_CHECKING:
    from envferry.build.downloads import DownloadCache
    from envferry.progress import Progress
    from envferry.tool.tree import ToolTree
    from envferry.trust.signing import Signer

HEADER = Path(__file__).with_name("header.sh")
ID_DIGITS = 16
COMPRESSION_LEVEL = 6
END_BLOCKS = 2 * tarfile.BLOCKSIZE
"""POSIX wants no more: padding to a record would be left unread in the pipe."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What a run file starts, as words of the shell in the tree and for every start."""

    start: str
    check: str
    """Run once, in the folder of the tree that was just unpacked."""
    python: str
    platform: str
    glibc: tuple[int, int]
    host_libraries: tuple[str, ...] = ()


def program_of(tool: ToolTree) -> Program:
    """Return how the tool of a tree is started."""
    # -I: neither PYTHON… variables nor the working directory count; -B:
    # nothing is written where it lies.
    python = f"bin/python{tool.python.minor} -I -B -m"
    return Program(
        start=f'"$tree"/{python} envferry "$@"',
        check=f"{python} envferry.tool.first_start",
        python=tool.python.version,
        platform=tool.platform,
        glibc=tool.glibc,
        host_libraries=tool.host_libraries,
    )


def write_run_file(path: Path, content: bytes, signer: Signer | None) -> None:
    """Write the executable file, and its signature beside it."""
    # Removed first: a run that is killed leaves no signature of other bytes beside the file.
    attestation = attestation_of(path)
    attestation.unlink(missing_ok=True)  # of another content
    with atomic_write(path, 0o755) as stream:
        stream.write(content)
    if signer:
        write_bytes(attestation, attest_run_file(content, signer))


def build_run_file(
    interpreter: Path, platform: str, *, cache: DownloadCache, progress: Progress
) -> tuple[bytes, Program]:
    """Return the bytes of the one-file tool for a platform, made of an interpreter and the lock.

    Equal inputs give equal bytes. Raises what `build_tool_tree` does.
    """
    with tempfile.TemporaryDirectory(prefix="envferry-tool-") as scratch:
        tree = Path(scratch, "tree")
        tool = build_tool_tree(interpreter, platform, tree, cache=cache, progress=progress)
        program = program_of(tool)
        with progress.task("compress envferry.run"):
            return render_run_file(tree, program), program


def render_run_file(tree: Path, program: Program) -> bytes:
    """Return the bytes of the file: the header, one line that ends it, the compressed tree."""
    plain = _tar(tree)
    # mtime=0: gzip's header would hold the time, and equal inputs would give other bytes.
    payload = gzip.compress(plain, compresslevel=COMPRESSION_LEVEL, mtime=0)
    digest = sha256_hex(payload)
    machine = MACHINES[program.platform]
    values = {
        "VERSION": envferry.__version__,
        "PLATFORM": program.platform,
        "MACHINE": machine,
        "PYTHON": program.python,
        "LOADER": LOADERS[program.platform],
        "GLIBC": "{}.{}".format(*program.glibc),
        "LIBRARIES": ", ".join(program.host_libraries),
        "SHA256": digest,
        "ID": digest[:ID_DIGITS],
        "BYTES": str(len(payload)),
        "UNPACKED_MB": str(-(-len(plain) // 1_000_000)),
        "START": program.start,
        "CHECK": program.check,
    }
    text = HEADER.read_text(encoding="utf-8")
    # KeyError for a name without a value: a gap would show up on a host only.
    filled = re.sub(r"@([A-Z0-9_]+)@", lambda found: values[found[1]], text)
    return filled.encode() + payload


def _tar(tree: Path) -> bytes:
    """Return a tree as a tar that says nothing of who made it, or when.

    USTAR: every tar reads it, also busybox's.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        # Sorted: directories list their entries in an order of their own.
        for path in sorted(tree.rglob("*")):
            member = archive.gettarinfo(path, str(path.relative_to(tree)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = 0
            # Two modes only: a umask must not change the bytes.
            is_program = stat.S_ISDIR(path.lstat().st_mode) or member.mode & stat.S_IXUSR
            member.mode = 0o755 if is_program else 0o644
            if member.islnk():  # files that share an inode: what counts is their content
                member.type, member.size = tarfile.REGTYPE, os.stat(path).st_size  # noqa: PTH116
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)
        end = archive.offset
    # tarfile pads the end to a record of 10,240 bytes.
    return stream.getvalue()[:end] + bytes(END_BLOCKS)
