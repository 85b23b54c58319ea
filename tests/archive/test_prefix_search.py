"""Which bytes of a file are the prefix, and what becomes of files of every kind when it changes."""

from __future__ import annotations

import gzip
import io
import json
import marshal
import pickle
import sqlite3
import struct
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.archive.index import FileEntry
from envferry.archive.members import Member, Owner, Recorded
from envferry.archive.prefix_search import find_edits
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive, FileSource
from envferry.archive.writer import ArchiveOptions, write_archive
from tests.support.archives import PREFIX, small_archive
from tests.support.installing import install

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


NEW_PREFIXES = ("/e/d", "/srv/environments/of/everybody/who/trains/models/demo")
DATA = f"{PREFIX}/share/x"


def moved(content: bytes, old: str, new: str, recorded: Recorded | None = None) -> bytes:
    """Return what a file holds after its prefix was changed."""
    finding = find_edits(content, old.encode(), recorded)
    entry = FileEntry(path="f", size=len(content), edits=finding.edits)
    return Relocation(old, new).edit(content, entry)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("#!/env/bin/python\n", "#!/new/e/bin/python\n"),
        ("#!/usr/bin/env python\n", "#!/usr/bin/env python\n"),
        ("see /etc/environment, /env, /env/lib", "see /etc/environment, /new/e, /new/e/lib"),
        (
            "/env2 /env-d/x /env.o /env_x /env~ /envé",
            "/env2 /env-d/x /env.o /env_x /env~ /envé",
        ),
        ("It is /env.\nOr is it in /env?", "It is /new/e.\nOr is it in /new/e?"),
        (
            "-I/env/include -L/env/lib -isystem/env/i",
            "-I/new/e/include -L/new/e/lib -isystem/new/e/i",
        ),
        ("-Wl,-rpath,/env/lib -B=/env", "-Wl,-rpath,/new/e/lib -B=/new/e"),
        ("-I/usr/env/include bin/env ../env ~/env", "-I/usr/env/include bin/env ../env ~/env"),
        ("file:///env/wheel.whl https://host/env/x", "file:///new/e/wheel.whl https://host/env/x"),
        ("PATH=/env/bin:/env/sbin:/usr/env", "PATH=/new/e/bin:/new/e/sbin:/usr/env"),
        ('{"a": "one\\n/env/lib", "b": "/env"}', '{"a": "one\\n/new/e/lib", "b": "/new/e"}'),
        ("$(DESTDIR)/env/lib ${ROOT}/env", "$(DESTDIR)/new/e/lib ${ROOT}/new/e"),
        ("//env/lib", "//new/e/lib"),
    ],
)
def test_a_prefix_is_a_path_of_its_own(before: str, after: str) -> None:
    assert moved(before.encode(), "/env", "/new/e").decode() == after


def test_a_dot_before_what_conda_put_there() -> None:
    text = b"assets = './env', '/usr/env', '../env'\n"
    assert moved(text, "/env", "/new") == text
    expected = text.replace(b"./env'", b"./new'", 1)
    assert moved(text, "/env", "/new", Recorded("text", 255)) == expected


def test_a_prefix_of_a_sibling_stays() -> None:
    text = (
        b"data=/opt/conda/envs/demo-data/x other=/opt/conda/envs/demo2 own=/opt/conda/envs/demo\n"
    )
    assert moved(text, PREFIX, "/e") == text.replace(b"own=/opt/conda/envs/demo", b"own=/e")


def test_strings_that_hold_other_paths_are_edited_in_part() -> None:
    content = b"\x7fELF\0/env/bin:/usr/bin/env:/env/x\0" + bytes(300)
    recorded = Recorded("binary", 255)
    for new in ("/e", "/a/longer/environment"):
        expected = f"{new}/bin:/usr/bin/env:{new}/x\0".encode()
        edited = moved(content, "/env", new, recorded)
        assert edited[5 : 5 + len(expected)] == expected
        assert len(edited) == len(content)


def test_what_conda_recorded_decides() -> None:
    """A text with a NUL in it, and a file that its package has as it is."""
    content = b"#!/bin/sh\nexec " + PREFIX.encode() + b"/bin/x\n\0binary"
    assert moved(content, PREFIX, "/e", Recorded("text", 255)) == content.replace(
        PREFIX.encode(), b"/e"
    )
    text = f"for example {PREFIX}/bin\n".encode()
    digest = "dd0b5ab0a3cf8b9a2ee8dfd31ed9bd4a5d9ae5d46b47eb0b6a40c4a8ad6c6e0d"
    assert moved(text, PREFIX, "/e", Recorded("none", 0, "")) == text
    # What conda calls binary may have no NUL at all.
    assert moved(text, PREFIX, "/longer/than/it/was/before", Recorded("binary", 255)) == (
        text.replace(PREFIX.encode(), b"/longer/than/it/was/before")
    )
    # Its checksum is another one: a script changed it after it was linked.
    assert moved(text, PREFIX, "/e", Recorded("none", 0, digest)) != text


def make_sqlite(path: Path) -> None:
    """Write a database with the prefix in it."""
    connection = sqlite3.connect(path)
    connection.execute("create table t(a text, b int)")
    connection.execute("insert into t values(?, 7)", (DATA,))
    connection.commit()
    connection.close()


def read_sqlite(path: Path) -> Any:
    """Read the row of a database."""
    connection = sqlite3.connect(path)
    [row] = connection.execute("select * from t").fetchall()
    connection.close()
    return row


def make_zip(path: Path) -> None:
    """Write a zip file that is stored, so that the prefix stands in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", DATA)


def read_zip(path: Path) -> Any:
    """Read the file in a zip file."""
    with zipfile.ZipFile(path) as archive:
        return archive.read("a.txt").decode()


def make_tar(path: Path) -> None:
    """Write a tar archive with the prefix in a file."""
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(DATA)
        archive.addfile(member, io.BytesIO(DATA.encode()))


def read_tar(path: Path) -> Any:
    """Read the file in a tar archive."""
    with tarfile.open(path) as archive:
        found = archive.extractfile("a.txt")
        assert found is not None
        return found.read().decode()


def npy(text: str) -> bytes:
    """Return an array of one string of exactly its width, as numpy.lib.format writes it."""
    header = (
        f"{{'descr': '|S{len(text)}', 'fortran_order': False, 'shape': (2,), }}".ljust(117) + "\n"
    )
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + text.encode() * 2


def read_npy(path: Path) -> Any:
    """Read the first element of an array."""
    content = path.read_bytes()
    (length,) = struct.unpack("<H", content[8:10])
    width = int(content[10 : 10 + length].split(b"|S")[1].split(b"'")[0])
    data = content[10 + length :]
    assert len(data) == 2 * width
    return data[width:].decode()


def safetensors(text: str) -> bytes:
    """Return a file as safetensors has it: length, JSON, numbers."""
    header = json.dumps({"__metadata__": {"path": text}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(64)


def read_safetensors(path: Path) -> Any:
    """Read the text in the header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]["path"]


def font(text: str) -> bytes:
    """Return a font of one table, of which the header says where it is and how long."""
    table = struct.pack(">4sIII", b"name", 0, 28, len(text))
    return struct.pack(">IHHHH", 0x00010000, 1, 16, 0, 0) + table + text.encode()


def read_font(path: Path) -> Any:
    """Read the table of a font."""
    content = path.read_bytes()
    _, _, offset, length = struct.unpack(">4sIII", content[12:28])
    assert len(content) == offset + length
    return content[offset:].decode()


def ar(text: str) -> bytes:
    """Return an archive of two texts as `ar` has it: nothing in it but text, and their sizes."""
    members = ((b"a.txt/", f"{text}\n".encode()), (b"b.txt/", b"second\n"))
    parts = []
    for name, content in members:
        header = b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(content))
        parts += [header, content, b"\n" * (len(content) % 2)]
    return b"!<arch>\n" + b"".join(parts)


def read_ar(path: Path) -> Any:
    """Read the first of two members, by way of the size in its header."""
    content = path.read_bytes()
    size = int(content[8 + 48 : 8 + 58])
    following = 8 + 60 + size + size % 2
    assert content[following : following + 6] == b"b.txt/"
    return content[68 : 68 + size].decode().rstrip("\n")


def cpio(text: str) -> bytes:
    """Return an archive of one text in cpio's "new ASCII" format: sizes in hexadecimal digits."""
    parts = []
    for name, content in ((b"a.txt", text.encode()), (b"TRAILER!!!", b"")):
        numbers = (1, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name + b"\0"
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def read_cpio(path: Path) -> Any:
    """Read the first member."""
    content = path.read_bytes()
    return content[116 : 116 + int(content[54:62], 16)].decode()


def fits(text: str) -> bytes:
    """Return a FITS header: lines of 80 characters without ends, in blocks of 2880."""
    cards = ("SIMPLE  =                    T", f"HISTORY {text}", "END")
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode()


def read_fits(path: Path) -> Any:
    """Read the second line of a FITS header."""
    content = path.read_bytes()
    assert len(content) == 2880
    assert content[160:].rstrip() == b"END"
    return content[80:160].decode().split()[1]


def pickler(protocol: int) -> Callable[[Path], object]:
    """Return what writes a pickle of this protocol."""
    return lambda path: path.write_bytes(pickle.dumps(DATA, protocol))


def read_pickle(path: Path) -> Any:
    """Read a pickle of our own."""
    return pickle.loads(path.read_bytes())


Format = tuple["Callable[[Path], object]", "Callable[[Path], Any]"]
FORMATS: dict[str, Format] = {
    **{f"pickle{protocol}": (pickler(protocol), read_pickle) for protocol in range(1, 6)},
    "marshal": (
        lambda path: path.write_bytes(marshal.dumps([DATA + "ä"])),
        lambda path: marshal.loads(path.read_bytes())[0][:-1],
    ),
    "sqlite": (make_sqlite, lambda path: read_sqlite(path)[0]),
    "zip": (make_zip, read_zip),
    "tar": (make_tar, read_tar),
    "npy": (lambda path: path.write_bytes(npy(DATA)), read_npy),
    "safetensors": (lambda path: path.write_bytes(safetensors(DATA)), read_safetensors),
    "ar": (lambda path: path.write_bytes(ar(DATA)), read_ar),
    "cpio": (lambda path: path.write_bytes(cpio(DATA)), read_cpio),
    "fits": (lambda path: path.write_bytes(fits(DATA)), read_fits),
    "font": (lambda path: path.write_bytes(font(DATA)), read_font),
    "gzip": (
        lambda path: path.write_bytes(gzip.compress(DATA.encode(), 0)),
        lambda path: gzip.decompress(path.read_bytes()).decode(),
    ),
    "msgpack": (
        lambda path: path.write_bytes(msgspec.msgpack.encode({"path": DATA, "n": 0})),
        lambda path: msgspec.msgpack.decode(path.read_bytes())["path"],
    ),
}


PATH_OF_40 = PREFIX + "/share/".ljust(40 - len(PREFIX), "x")


@pytest.mark.parametrize(
    "content",
    [
        msgspec.msgpack.encode({"path": PATH_OF_40, "n": 0}),
        msgspec.msgpack.encode({"path": f"PATH={PATH_OF_40}", "n": 0}),
        b"\xa2dpathx(" + PATH_OF_40.encode() + b"an\x00",  # CBOR (RFC 8949)
        b"\n(" + PATH_OF_40.encode() + b"!" + struct.pack("<d", 1),  # protocol buffers: 1, 4
        b"\1\0" + struct.pack("<H", 40) + PATH_OF_40.encode() + b"!\0\0\0",
        b"\1\0" + struct.pack(">H", 40) + PATH_OF_40.encode() + b"!\0\0\0",
        b"\1\0" + struct.pack(">I", 40) + PATH_OF_40.encode() + b"!\0\0\0",
    ],
    ids=["msgpack", "msgpack middle", "CBOR", "protobuf", "16 bits", "16 bits, big-endian",
         "32 bits, big-endian"],
)  # fmt: skip
def test_a_length_may_look_like_a_letter(content: bytes) -> None:
    assert len(PATH_OF_40) == 40
    found = find_edits(content, PREFIX.encode(), None)
    assert found.edits is None
    assert found.left_alone


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_text_of_windows_is_named(encoding: str) -> None:
    mark = "\ufeff"
    there = f"{mark}[Paths]\r\nPrefix={PREFIX}\r\n".encode(encoding)
    elsewhere = f"{mark}[Paths]\r\nPrefix=/usr\r\n".encode(encoding)
    assert find_edits(there, PREFIX.encode(), None) == (None, "a UTF-16 text")
    assert find_edits(elsewhere, PREFIX.encode(), None) == (None, "")


def test_a_text_of_windows_is_named_when_it_is_packed(tmp_path: Path) -> None:
    """No byte of the prefix stands beside the next one: the file is looked at all the same."""
    contents = {
        "lib/there.ini": f"\ufeffPrefix={PREFIX}\r\n".encode("utf-16-le"),
        "lib/elsewhere.ini": "\ufeffPrefix=/usr\r\n".encode("utf-16-le"),
    }
    written = small_archive(tmp_path / "demo.tar.zst", contents)
    assert written.left_alone == (("lib/there.ini", "a UTF-16 text"),)


@pytest.mark.parametrize("word", ["CDF_BASE=", "true ", "MZ=", "RIFF: ", "PAR1=", "LZIP="])
def test_a_text_may_begin_as_a_format_does(word: str) -> None:
    assert moved(f"{word}/env/lib\n".encode(), "/env", "/new") == f"{word}/new/lib\n".encode()


@pytest.mark.parametrize("prefix", NEW_PREFIXES)
def test_formats_that_note_lengths_are_left_alone(tmp_path: Path, envs: Path, prefix: str) -> None:
    contents = {}
    for name, (make, _) in FORMATS.items():
        make(tmp_path / name)
        contents[f"lib/{name}"] = (tmp_path / name).read_bytes()
        assert PREFIX.encode() in contents[f"lib/{name}"], name
    written = small_archive(tmp_path / "demo.tar.zst", contents)
    named = {path for path, _ in written.left_alone}
    assert {f"lib/{name}" for name in FORMATS} == named
    install(tmp_path / "demo.tar.zst", envs, prefix=prefix)
    for name, (_, read) in FORMATS.items():
        assert read(envs / f"demo/lib/{name}") == DATA, name


def test_programs_follow(tmp_path: Path, envs: Path) -> None:
    """A program compiled here: its strings follow; a note and debug information do not."""
    source = tmp_path / "a.c"
    source.write_text(
        "#include <stdio.h>\n"
        f'__asm__(".section .note.test,\\"a\\",@note\\n.long 4,24,1\\n.asciz \\"abc\\"\\n'
        f'.ascii \\"{PREFIX}/abc\\"\\n.previous");\n'
        f'int main(void) {{ puts("{PREFIX}/share"); return 0; }}\n'
    )
    program = tmp_path / "a.out"
    compiled = subprocess.run(
        ["gcc", "-g", source, "-o", program, f"-Wl,-rpath,{PREFIX}/lib"], check=False
    )
    if compiled.returncode:
        pytest.skip("no compiler here")
    small_archive(tmp_path / "demo.tar.zst", {"bin/a": program.read_bytes()})
    install(tmp_path / "demo.tar.zst", envs, prefix="/e/d")
    told = subprocess.run([envs / "demo/bin/a"], capture_output=True, text=True, check=True)
    assert told.stdout == "/e/d/share\n"
    shown = subprocess.run(
        ["readelf", "-d", "-n", envs / "demo/bin/a"], capture_output=True, text=True, check=True
    )
    assert "[/e/d/lib]" in shown.stdout
    assert f"{PREFIX}/abc".encode() in (envs / "demo/bin/a").read_bytes()


@pytest.mark.parametrize("prefix", NEW_PREFIXES)
def test_a_program_in_a_zip_file_starts(tmp_path: Path, envs: Path, prefix: str) -> None:
    """What `python -m zipapp` makes: a first line, then a zip file."""
    packed = io.BytesIO()
    packed.write(f"#!{PREFIX}/bin/python\n".encode())
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("__main__.py", f"print('{PREFIX}')\n")
    small_archive(tmp_path / "demo.tar.zst", {"bin/app": packed.getvalue()})
    install(tmp_path / "demo.tar.zst", envs, prefix=prefix)
    path = envs / "demo/bin/app"
    assert path.read_bytes().splitlines()[0].rstrip() == f"#!{prefix}/bin/python".encode()
    told = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    assert told.stdout == f"{PREFIX}\n"


def test_an_archive_without_places_is_moved_as_it_ever_was(tmp_path: Path) -> None:
    """Archives of before: every occurrence of a text is replaced, whatever it is a part of."""
    text = f"{PREFIX} {PREFIX}2\n".encode()
    written = small_archive(tmp_path / "demo.tar.zst", {"lib/a": text})
    [entry] = [item for item in written.index.files if item.path == "lib/a"]
    assert entry.edits is not None
    assert entry.edits.at == (0,)
    old = msgspec.structs.replace(entry, edits=msgspec.structs.replace(entry.edits, at=()))
    assert Relocation(PREFIX, "/e").edit(text, old) == b"/e /e2\n"
    assert Relocation(PREFIX, "/e").edit(text, entry) == f"/e {PREFIX}2\n".encode()


def test_large_files_are_edited_where_it_says(tmp_path: Path, envs: Path) -> None:
    line = f"{PREFIX}/a {PREFIX}2/b\n".encode()
    text = line + b"x" * (17 << 20) + b"\n" + line
    source = tmp_path / "large"
    source.write_bytes(text)
    entry = FileEntry(path="large", size=len(text))
    options = ArchiveOptions(name="demo", platform="linux-64", prefix=PREFIX, mtime=315532800)
    with (tmp_path / "demo.tar.zst").open("wb") as stream:
        write_archive(
            stream,
            [Member(entry=entry, owner=Owner(), source=str(source))],
            options=options,
            generate=lambda files: (),
            advance=lambda count: None,
        )
    with FileSource(tmp_path / "demo.tar.zst") as opened:
        assert Archive(opened).index.files[0].edits is not None
    install(tmp_path / "demo.tar.zst", envs, prefix="/e")
    expected = line.replace(f"{PREFIX}/a".encode(), b"/e/a")
    assert (envs / "demo/large").read_bytes() == text.replace(line, expected)
