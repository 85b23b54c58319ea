"""The file that unpacks and starts itself: what its script does on hosts of all kinds."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from msgspec.structs import replace

from envferry.base.sha256 import sha256_hex
from envferry.errors import IntegrityError
from envferry.names import current_platform
from envferry.process import find_program
from envferry.tool.run_file import Program, render_run_file, write_run_file
from envferry.trust.tool_signature import verify_run_file
from tests.conftest import require
from tests.support.keys import OURS, THEIRS, signer

if TYPE_CHECKING:
    from collections.abc import Callable

SHELLS = ("dash", "bash", "busybox")
PROGRAM = Program(
    start='"$tree"/bin/program "$@"',
    check="bin/program --check",
    python="3.12.1",
    platform=current_platform(),
    glibc=(2, 17),
)
"""A run file of a program of the shell instead of Python's: all else is the same."""


def make_tree(tmp_path: Path, script: str = 'echo "started $0 with" "$@"; umask') -> Path:
    """Return a tree whose program is a script of the shell."""
    tree = tmp_path / "made"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/program").write_text(f"#!/bin/sh\n{script}\n")
    (tree / "bin/program").chmod(0o755)
    (tree / "lib").mkdir()
    (tree / "lib/data").write_bytes(os.urandom(100_000))
    (tree / "lib/link").symlink_to("data")
    return tree


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run file, signed by our key."""
    path = tmp_path / "disk/envferry.run"
    path.parent.mkdir()
    write_run_file(path, render_run_file(make_tree(tmp_path), PROGRAM), signer(OURS))
    return path


class Host:
    """A place to unpack to, and how a run file is started there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def run(
        self, path: Path, *words: str, shell: str = "sh", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Start a run file with a shell."""
        found = find_program(shell)
        require(shell, found)
        interpreter = [str(found), "sh"] if shell == "busybox" else [str(found)]
        usual = {"PATH": "/usr/bin:/bin", "ENVFERRY_TOOL_DIR": str(self.place)}
        return subprocess.run([*interpreter, str(path), *words], env=usual | environ,
                              capture_output=True, text=True, check=False)  # fmt: skip

    def trees(self) -> list[Path]:
        """Return what has been unpacked."""
        return sorted(self.place.glob("*/tree"))

    def leftovers(self) -> list[str]:
        """Return what lies around beside."""
        return [path.name for path in self.place.iterdir() if path.name.startswith(".")]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host/tool")


@pytest.mark.parametrize("shell", SHELLS)
def test_it_unpacks_once_and_starts(run_file: Path, host: Host, shell: str) -> None:
    first = host.run(run_file, "install", "a b", "$(touch x)", shell=shell)
    assert first.returncode == 0, first.stderr
    (tree,) = host.trees()
    assert f"started {tree}/bin/program with install a b $(touch x)" in first.stdout
    assert "unpacking envferry" in first.stderr
    assert host.leftovers() == []
    assert (tree / "lib/link").readlink() == Path("data")
    again = host.run(run_file, "ls", shell=shell)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith(f"started {tree}/bin/program with ls")


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    first = render_run_file(tree, PROGRAM)
    for path in (tree / "lib/data", tree / "bin", tree):
        os.utime(path, (1, 1))
    (tree / "lib/data").chmod(0o600)
    copy = tmp_path / "copy"
    (tree).rename(copy)
    assert render_run_file(copy, PROGRAM) == first
    assert str(tmp_path).encode() not in first


def test_modes_do_not_depend_on_the_umask(run_file: Path, host: Host) -> None:
    """Neither does the program's umask depend on the unpacking."""
    for number, mask in enumerate((0o077, 0o000)):
        place = Host(host.place / str(number))
        words = f"umask {mask:04o}; exec sh {run_file} x"
        environ = {"PATH": "/usr/bin:/bin", "ENVFERRY_TOOL_DIR": str(place.place)}
        host.place.mkdir(parents=True, exist_ok=True)
        said = subprocess.run(["sh", "-c", words], env=environ, capture_output=True, text=True,
                              check=True)  # fmt: skip
        assert int(said.stdout.split()[-1], 8) == mask
        (tree,) = place.trees()
        modes = [
            oct(path.stat().st_mode & 0o777) for path in (tree, tree / "bin", tree / "bin/program")
        ]
        assert modes == ["0o755"] * 3
        assert (tree / "lib/data").stat().st_mode & 0o777 == 0o644


def test_many_first_starts_at_once(run_file: Path, host: Host) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(host.run(run_file, "x"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.returncode, one.stdout.split()[0]) for one in results] == [(0, "started")] * 8
    assert len(host.trees()) == 1
    assert host.leftovers() == []
    assert not list(host.place.glob("*/tree/tree"))


def test_what_a_killed_start_left_is_removed_and_never_run(run_file: Path, host: Host) -> None:
    host.run(run_file, "--info")
    gone = subprocess.Popen(["true"])
    gone.wait()
    name = os.uname().nodename
    dead, alive = (host.place / f".new-{name}-{pid}" for pid in (gone.pid, os.getpid()))
    for place in (dead, alive):
        (place / "tree/bin").mkdir(parents=True)
        (place / "tree/bin/program").write_text("half of it")
    assert host.run(run_file, "x").returncode == 0
    assert host.leftovers() == [alive.name]


@pytest.mark.parametrize("where", ["header", "payload", "end", "last byte"])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_damaged_file_is_refused(run_file: Path, host: Host, where: str, shell: str) -> None:
    content = bytearray(run_file.read_bytes())
    start = content.index(b"\n#payload\n")
    if where == "header":
        del content[start:]
    elif where == "payload":
        content[start + 5000] ^= 1
    elif where == "end":
        del content[-5000:]
    else:
        content[-1] ^= 1
    run_file.write_bytes(content)
    said = host.run(run_file, "x", shell=shell)
    assert said.returncode == 8
    assert "error: " in said.stderr
    assert "copy it again" in said.stderr
    assert host.trees() == []
    assert host.leftovers() == []


@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_cut_in_its_script_says_so(run_file: Path, host: Host, shell: str) -> None:
    """What is shorter than its first lines cannot speak: it is an error of syntax, or empty."""
    content = run_file.read_bytes()
    first_command = content.index(b"\n{") + 2
    can_speak = content.index(b"; }\n") + 3
    assert can_speak < 2 * 97
    ends = [*range(first_command, can_speak), *range(can_speak, content.index(b"\n#payload"), 97)]
    for end in ends:
        run_file.write_bytes(content[:end])
        said = host.run(run_file, "install", "demo", shell=shell)
        assert (said.returncode, said.stdout) == (8 if end >= can_speak else 2, ""), end
        if end >= can_speak:
            assert said.stderr == f"error: {run_file} is not complete\nhint: copy it again\n", end
        assert not host.place.exists(), end


def bare_path(tmp_path: Path, *without: str) -> str:
    """Return a PATH of a host that has no more programs than are needed."""
    names = {"id", "uname", "ls", "mkdir", "mv", "rm", "chmod", "cat", "tar", "gzip"}
    folder = tmp_path / "few"
    folder.mkdir()
    for name in names - set(without):
        (folder / name).symlink_to(str(find_program(name)))
    return str(folder)


def test_it_needs_tar_and_gzip_and_few_others(run_file: Path, host: Host, tmp_path: Path) -> None:
    path = bare_path(tmp_path)
    assert host.run(run_file, "x", PATH=path).returncode == 0
    (tmp_path / "few/gzip").unlink()
    said = Host(tmp_path / "other").run(run_file, "x", PATH=path)
    assert said.returncode == 11
    assert "error: gzip is not installed" in said.stderr


def test_damage_is_found_without_sha256sum(run_file: Path, host: Host, tmp_path: Path) -> None:
    """By gzip's own checksum, even where only that is damaged and tar has read everything."""
    content = bytearray(run_file.read_bytes())
    content[-6] ^= 1
    run_file.write_bytes(content)
    said = host.run(run_file, "x", PATH=bare_path(tmp_path))
    assert said.returncode == 11
    assert "cannot be unpacked" in said.stderr
    assert (host.trees(), host.leftovers()) == ([], [])


def test_a_program_that_does_not_start_leaves_nothing(tmp_path: Path, host: Host) -> None:
    tree = make_tree(tmp_path, "echo 'libfoo.so.1: cannot open shared object file' >&2; exit 1")
    path = tmp_path / "envferry.run"
    needs = replace(PROGRAM, host_libraries=("libgcc_s.so.1",))
    write_run_file(path, render_run_file(tree, needs), None)
    said = host.run(path, "x")
    assert said.returncode == 11
    assert "libfoo.so.1: cannot open" in said.stderr
    assert "error: envferry does not start on this system" in said.stderr
    assert "glibc 2.17 or newer, and libgcc_s.so.1" in said.stderr
    assert (host.trees(), host.leftovers()) == ([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"glibc": (2, 999)}, r"this system has glibc 2\.\d+, this file needs 2\.999 or newer"),
        ({"glibc": (3, 0)}, r"this system has glibc 2\.\d+, this file needs 3\.0 or newer"),
        (
            {"platform": "elsewhere"},
            r"this machine is \w+, this file is for \w+\nhint: make one on a build machine: "
            rf"`envferry tool FILE --platform {current_platform()}`",
        ),
    ],
)
def test_hosts_that_it_is_not_for(
    tmp_path: Path, host: Host, change: dict[str, object], message: str
) -> None:
    """Refused before anything is written."""
    path = tmp_path / "envferry.run"
    others = {"linux-64": "linux-aarch64", "linux-aarch64": "linux-64"}
    if "platform" in change:
        change = {"platform": others[current_platform()]}
    program = replace(PROGRAM, **change)
    write_run_file(path, render_run_file(make_tree(tmp_path), program), None)
    said = host.run(path, "x")
    assert said.returncode == 11
    assert re.search(message, said.stderr)
    assert not host.place.exists()


def test_a_system_without_glibc(run_file: Path, host: Host) -> None:
    text = run_file.read_bytes()
    run_file.write_bytes(re.sub(rb"loader='[^']*'", b"loader='/lib/ld-none.so.1'", text, count=1))
    said = host.run(run_file, "x")
    assert said.returncode == 11
    assert "it has another C library than glibc, such as musl" in said.stderr
    assert not host.place.exists()


def by_others(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o777)


def by_its_group(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o775)


def above(place: Path) -> None:
    place.mkdir(parents=True)
    place.parent.chmod(0o777)


def sticky(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o1777)


def by_way_of_a_link(place: Path) -> None:
    real = place.parent.parent / "theirs"
    real.mkdir()
    real.chmod(0o777)
    (real / "tool").mkdir()
    place.parent.mkdir()
    place.symlink_to(real / "tool")


@pytest.mark.parametrize("hostile", [by_others, by_its_group, above, sticky, by_way_of_a_link])
def test_places_that_others_can_write_to(
    run_file: Path, host: Host, hostile: Callable[[Path], None]
) -> None:
    """What another user could change is never run, and never written to."""
    hostile(host.place)
    said = host.run(run_file, "x")
    assert said.returncode == 11
    assert "finds no place to unpack itself" in said.stderr
    assert "other users" in said.stderr
    assert "ENVFERRY_TOOL_DIR=" in said.stderr
    assert list(host.place.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of other users")
@pytest.mark.parametrize("what", [".", "..", "ID", "ID/tree"])
def test_places_of_another_user(run_file: Path, host: Host, what: str) -> None:
    """Also a tree under the right name that somebody else put there."""
    assert host.run(run_file, "x").returncode == 0
    (tree,) = host.trees()
    theirs = {".": host.place, "..": host.place.parent, "ID": tree.parent, "ID/tree": tree}[what]
    (tree / "bin/program").write_text("#!/bin/sh\necho evil\n")
    os.chown(theirs, 12345, 12345)
    said = host.run(run_file, "x")
    assert said.returncode == 11
    assert "belongs to another user" in said.stderr
    assert "evil" not in said.stdout


@pytest.mark.parametrize("place", ["relative/tool", "/tmp/with blank", "/tmp/$(touch x)"])
def test_odd_places(run_file: Path, tmp_path: Path, place: str) -> None:
    said = Host(Path(place)).run(run_file, "x")
    assert said.returncode == 11
    assert f"{place} " in said.stderr


def test_no_program_of_the_current_directory_runs(
    run_file: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("id", "ls", "tar", "gzip", "uname", "sha256sum", "mkdir", "program"):
        (hostile / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hostile / name).chmod(0o755)
    monkeypatch.chdir(hostile)
    assert host.run(run_file, "x", PATH=".::hostile:/usr/bin:/bin").returncode == 0
    assert not (tmp_path / "ran").exists()


def test_info(run_file: Path, host: Host) -> None:
    said = host.run(run_file, "--info").stdout
    payload = run_file.read_bytes().partition(b"\n#payload\n")[2]
    assert f"SHA-256 {sha256_hex(payload)}" in said
    assert "glibc      2.17 or newer" in said
    assert "not yet" in said
    host.run(run_file, "x")
    assert str(host.trees()[0]) in host.run(run_file, "--info").stdout


def public_key(tmp_path: Path) -> Path:
    path = tmp_path / "ours.pub"
    path.write_bytes(OURS.public.key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))  # fmt: skip
    return path


@pytest.mark.parametrize("shell", SHELLS)
def test_it_verifies_its_signature_with_openssl(
    run_file: Path, host: Host, tmp_path: Path, shell: str
) -> None:
    require("openssl", find_program("openssl"))
    said = host.run(run_file, "--verify", str(public_key(tmp_path)), shell=shell)
    assert (said.returncode, said.stderr) == (0, "")
    assert f"{run_file} is signed by" in said.stdout
    assert not host.place.exists()


@pytest.mark.parametrize("what", ["content", "header", "stranger", "no signature", "other file"])
def test_what_our_key_did_not_sign(run_file: Path, host: Host, tmp_path: Path, what: str) -> None:
    """An older copy, which a host trusts, checks a newer one."""
    require("openssl", find_program("openssl"))
    known = tmp_path / "known.run"
    known.write_bytes(run_file.read_bytes())
    content = run_file.read_bytes()
    attestation = run_file.with_name("envferry.run.attestation.json")
    if what == "content":
        run_file.write_bytes(content[:-1])
    elif what == "header":
        run_file.write_bytes(content.replace(b"set -euf", b"set -eu ", 1))
    elif what == "stranger":
        write_run_file(run_file, content, signer(THEIRS))
    elif what == "no signature":
        attestation.unlink()
    else:
        changed = content.replace(b"umask 022", b"umask 002")
        write_run_file(run_file, changed, signer(THEIRS, OURS))
        run_file.write_bytes(content)
    said = host.run(known, "--verify", str(public_key(tmp_path)), str(run_file))
    assert said.returncode == 8
    assert "error: " in said.stderr
    with pytest.raises(IntegrityError):
        verify_run_file(run_file, (OURS.public,))


def test_envferry_verifies_it_too(run_file: Path) -> None:
    verified = verify_run_file(run_file, (OURS.public,))
    assert verified.who == "ci@builder"


def test_verify_without_a_key_or_openssl(run_file: Path, host: Host, tmp_path: Path) -> None:
    said = host.run(run_file, "--verify")
    assert said.returncode == 2
    assert "error: --verify needs the file of a public key" in said.stderr
    key = str(public_key(tmp_path))
    (tmp_path / "none").mkdir()
    path = bare_path(tmp_path)
    (tmp_path / "few/grep").symlink_to(str(find_program("grep")))
    said = host.run(run_file, "--verify", key, PATH=path)
    assert said.returncode == 11
    assert "needs openssl 3" in said.stderr
