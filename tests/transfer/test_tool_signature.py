"""The tool on a disk is code: who signed it, and what its script does on a host."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from envferry.base.sha256 import sha256_hex
from envferry.errors import IntegrityError, NotFound
from envferry.names import current_platform
from envferry.process import find_program
from envferry.tool.run_file import Program, render_run_file, write_run_file
from envferry.transfer import host_tool
from envferry.transfer.host_tool import SCRIPT
from envferry.trust.signing import seal
from envferry.trust.tool_signature import SUMS, attest_tool, verify_tool
from tests.conftest import require
from tests.support.keys import OURS, THEIRS, signer

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVFERRY = Path(sys.executable).with_name("envferry")
FOREIGN_MACHINE = "this machine is"
"""What the script says after it has checked all files: they are for another machine."""


class Special(Enum):
    """What a disk can hold instead of a file."""

    PIPE = 1
    ENDLESS = 2


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """Return a folder like an export's `tool`, signed, for a machine that nobody has."""
    place = tmp_path / "disk/tool"
    (place / "wheels").mkdir(parents=True)
    version = "{}.{}".format(*sys.version_info)
    (place / "machine.txt").write_text("pdp-11\n")
    (place / f"requirements-{version}.txt").write_text("envferry==1\n")
    (place / "wheels/envferry-1-py3-none-any.whl").write_bytes(b"wheel")
    shutil.copy(SCRIPT, place / "install.sh")
    resign(place)
    return place


def resign(tool: Path, *keys: object) -> None:
    """Write the sums of what is there, signed with our key or with others."""
    files = sorted(path for path in tool.rglob("*") if path.is_file())
    lines = [
        f"{sha256_hex(path.read_bytes())}  {path.relative_to(tool)}\n"
        for path in files
        if path.name not in (SUMS, "attestation.json", "envferry.run.attestation.json")
    ]
    sums = "".join(lines).encode()
    (tool / SUMS).write_bytes(sums)
    (tool / "attestation.json").write_bytes(attest_tool(sums, signer(*keys or (OURS,))))  # type: ignore[arg-type]


FILES: Mapping[str, tuple[str, bytes | Special]] = {
    "changed wheel": ("wheels/envferry-1-py3-none-any.whl", b"evil"),
    "changed script": ("install.sh", b"#!/bin/sh\nexit 0\n"),
    "an added pip": ("wheels/pip-99-py3-none-any.whl", b"evil"),
    "a terabyte of nothing": ("machine.txt", Special.ENDLESS),
    "sums of a terabyte": (SUMS, Special.ENDLESS),
    "an attestation of a terabyte": ("attestation.json", Special.ENDLESS),
    "a pipe": ("machine.txt", Special.PIPE),
    "sums from a pipe": (SUMS, Special.PIPE),
    "an attestation from a pipe": ("attestation.json", Special.PIPE),
    "a nested attestation": ("attestation.json", b"[" * 300_000),
    "no envelope": ("attestation.json", b'{"payloadType": 1, "payload": [], "signatures": 3}'),
    "sums that are not text": (SUMS, b"\xff\xfe\n"),
}


def put(path: Path, content: bytes | Special) -> None:
    """Write a file, or what only looks like one."""
    if content is Special.PIPE:
        os.mkfifo(path)
    elif content is Special.ENDLESS:
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(content)


def change(tool: Path, what: str) -> None:
    """Do to a disk what somebody could."""
    wheel = tool / "wheels/envferry-1-py3-none-any.whl"
    if what == "missing":
        wheel.unlink()
    elif what == "sums, too":
        wheel.write_bytes(b"evil")
        attestation = (tool / "attestation.json").read_bytes()
        resign(tool)
        (tool / "attestation.json").write_bytes(attestation)
    elif what == "unsigned":
        (tool / "attestation.json").unlink()
    elif what == "a stranger's":
        resign(tool, THEIRS)
    elif what == "an added link to a folder":
        (tool / "wheels/more").symlink_to("/tmp")
    elif what in FILES:
        name, content = FILES[what]
        (tool / name).unlink(missing_ok=True)
        put(tool / name, content)
    elif what == "a name outside":
        text = (tool / SUMS).read_text()
        (tool / SUMS).write_text(text + f"{sha256_hex(b'')}  ../../evil\n")
        (tool / "attestation.json").write_bytes(
            attest_tool((tool / SUMS).read_bytes(), signer(OURS))
        )


CHANGES = (
    "missing", "sums, too", "unsigned", "a stranger's", "a name outside",
    "an added link to a folder", *FILES,
)  # fmt: skip


def test_a_signed_tool_is_what_it_was(tool: Path) -> None:
    verified = verify_tool(tool, (OURS.public,))
    assert (verified.who, verified.signed_by) == ("ci@builder", (f"{OURS.public.id} (test key)",))


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_tool_is_refused(tool: Path, what: str) -> None:
    change(tool, what)
    with pytest.raises(IntegrityError):
        verify_tool(tool, (OURS.public,))


def test_the_attestation_of_an_artifact_is_none_of_a_tool(tool: Path) -> None:
    subject = {"name": SUMS, "digest": {"sha256": sha256_hex((tool / SUMS).read_bytes())}}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {},
        "subject": [subject],
    }
    envelope = seal("application/vnd.in-toto+json", msgspec.json.encode(statement), [OURS])
    (tool / "attestation.json").write_bytes(msgspec.json.encode(envelope))
    with pytest.raises(IntegrityError, match="about something else"):
        verify_tool(tool, (OURS.public,))
    with pytest.raises(NotFound):
        verify_tool(tool.parent, (OURS.public,))


def install(tool: Path, *words: str, cwd: Path | None = None, **environ: str) -> tuple[int, str]:
    """Run the script as a host does; return its exit code and all that it said."""
    keys = tool.parents[1] / "trusted.d"
    found: Mapping[str, str] = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tool.parents[1]),
        "PYTHON": sys.executable,
        "ENVFERRY_TRUSTED_DIR": str(keys) if os.path.lexists(keys) else "/dev/null",
        **environ,
    }
    finished = subprocess.run(["/bin/sh", str(tool / "install.sh"), *words], cwd=cwd, env=found,
                              capture_output=True, text=True, check=False)  # fmt: skip
    return finished.returncode, finished.stdout + finished.stderr


def trust(tool: Path, *, name: str = "ours.pub") -> None:
    """Let the host trust our key."""
    place = tool.parents[1] / "trusted.d"
    place.mkdir()
    pem = OURS.public.key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (place / name).write_bytes(pem)


def test_the_script_checks_the_signature_with_openssl(tool: Path) -> None:
    require("openssl", find_program("openssl"))
    trust(tool)
    code, said = install(tool)
    assert code == 1
    assert "signed by a key of" in said
    assert FOREIGN_MACHINE in said
    assert "warning" not in said


@pytest.mark.parametrize(
    "what",
    [c for c in CHANGES if c != "changed script" and not c.startswith("an added")],
)
def test_the_script_refuses_a_changed_tool(tool: Path, what: str) -> None:
    """Not what a changed script would say: that needs the envferry that a host has already."""
    require("openssl", find_program("openssl"))
    trust(tool)
    change(tool, what)
    code, said = install(tool, "--allow-unsigned" if what == "changed wheel" else str(tool / "x"))
    assert code == 1
    assert FOREIGN_MACHINE not in said
    assert "error: " in said
    assert "Traceback" not in said
    assert "Error" not in said
    assert not (tool.parents[2] / "evil").exists()


def test_the_script_without_openssl(tool: Path, tmp_path: Path) -> None:
    """A host that trusts keys does not pass over a check that it cannot make."""
    trust(tool)
    names = ("dirname", "mktemp", "rm", "cat", "sed", "grep", "mkdir", "ls", "uname")
    (tmp_path / "bin").mkdir()
    for name in names:
        (tmp_path / "bin" / name).symlink_to(str(find_program(name)))
    code, said = install(tool, PATH=str(tmp_path / "bin"))
    assert code == 1
    assert "has no openssl 3" in said
    assert FOREIGN_MACHINE not in said
    code, said = install(tool, "--allow-unsigned", PATH=str(tmp_path / "bin"))
    assert "warning: the signature of these files is not checked" in said
    assert FOREIGN_MACHINE in said


@pytest.mark.parametrize("how", ["dangling link", "file"])
def test_the_script_finds_out_why_there_are_no_keys(tool: Path, how: str) -> None:
    """Where this user cannot look, keys may be."""
    above = tool.parents[1] / "etc"
    above.symlink_to("nowhere") if how == "dangling link" else above.touch()
    code, said = install(tool, ENVFERRY_TRUSTED_DIR=str(above / "trusted.d"))
    assert code == 1
    assert "this host requires signatures" in said


@pytest.mark.parametrize("how", ["variable", "file", "no *.pub", "dangling", "missing"])
def test_the_script_obeys_a_host_that_demands_signatures(tool: Path, how: str) -> None:
    """A directory of keys that was named and is missing is perhaps misspelled."""
    if how == "file":
        (tool.parents[1] / "require-signatures").touch()
    elif how == "no *.pub":
        trust(tool, name="ours.PUB")
    elif how == "dangling":
        (tool.parents[1] / "trusted.d").symlink_to("nowhere")
    environ = {"ENVFERRY_REQUIRE_SIGNATURES": "1" if how == "variable" else "0"}
    if how in {"file", "missing"}:
        environ["ENVFERRY_TRUSTED_DIR"] = str(tool.parents[1] / "trusted.d")
    code, said = install(tool, cwd=None, **environ)
    assert code == 1
    assert "this host requires signatures" in said


def test_the_script_says_what_a_host_without_keys_can_compare(tool: Path) -> None:
    code, said = install(tool)
    assert code == 1
    assert "this host trusts no keys" in said
    assert sha256_hex((tool / SUMS).read_bytes()) in said


def test_the_script_runs_nothing_of_the_current_directory(tool: Path, tmp_path: Path) -> None:
    place = tmp_path / "hostile"
    place.mkdir()
    for module in ("platform", "hashlib", "json", "venv", "site", "pathlib"):
        (place / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for program in ("python3", "dirname", "mktemp", "sed", "cat", "openssl"):
        (place / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (place / program).chmod(0o755)
    usual = {"PYTHONPATH": str(place), "PATH": f".::{place.name}:/usr/bin:/bin"}
    code, said = install(tool, cwd=place, **usual)
    assert (code, FOREIGN_MACHINE in said) == (1, True), said
    code, said = install(tool, cwd=place, **usual, PYTHON="python3")
    assert (code, "error: " in said) == (1, True), said
    assert not (tmp_path / "ran").exists()


def test_the_script_needs_a_home_or_a_name(tool: Path, tmp_path: Path) -> None:
    """A folder `envferry` of the current directory may be anybody's."""
    code, said = install(tool, cwd=tmp_path, HOME="")
    assert code == 1
    assert "HOME is not set, and no directory is named" in said


def test_the_script_runs_no_python_that_it_finds_at_its_target(tool: Path, tmp_path: Path) -> None:
    """venv leaves a `bin/python` that is there as it is: of another version, or anything else."""
    (tool / "machine.txt").write_text(f"{platform.machine()}\n")
    resign(tool)
    target = tmp_path / "target"
    (target / "bin").mkdir(parents=True)
    (target / "pyvenv.cfg").touch()
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    trap.chmod(0o755)
    for name in ("python", "python3", "python{}.{}".format(*sys.version_info)):
        (target / "bin" / name).symlink_to(trap)
    code, said = install(tool, str(target))
    assert (code, "pip could not install the wheels" in said) == (1, True), said
    assert not (tmp_path / "ran").exists()
    home = (target / "bin/python").resolve()
    assert home == Path(sys.executable).resolve()
    code, said = install(tool, str(target), PYTHON=str(target / "bin/python"))
    assert "pip could not install the wheels" in said
    assert (target / "bin/python").resolve() == home


@pytest.mark.parametrize(
    "name", ["it's", "$(touch ran)", "a:b", "with blank", "new\nline", "x" * 120]
)
def test_the_script_refuses_odd_directories(tool: Path, tmp_path: Path, name: str) -> None:
    code, said = install(tool, name, cwd=tmp_path)
    assert code == 1
    assert "error: envferry cannot be installed there" in said
    assert not (tmp_path / name).exists()
    assert not (tmp_path / "ran").exists()


def old_python(tmp_path: Path, version: str) -> str:
    """Return a python3 of a version that no wheel is for."""
    path = tmp_path / "old-python"
    path.write_text(f"#!/bin/sh\ncase $3 in *version*) echo {version} ;; *) uname -m ;; esac\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def one_file(tool: Path, tmp_path: Path) -> Path:
    """Return a disk that also has the one-file tool: here a program of the shell."""
    tree = tmp_path / "made"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/program").write_text("#!/bin/sh\necho started the one file\n")
    (tree / "bin/program").chmod(0o755)
    program = Program(
        start='"$tree"/bin/program "$@"',
        check="bin/program",
        python="3.12.1",
        platform=current_platform(),
        glibc=(2, 17),
    )
    write_run_file(tool / "envferry.run", render_run_file(tree, program), signer(OURS))
    resign(tool)
    return tool


@pytest.mark.parametrize("python", ["none", "3.6"])
def test_the_script_installs_the_one_file_without_a_python(
    one_file: Path, tmp_path: Path, python: str
) -> None:
    require("openssl", find_program("openssl"))
    trust(one_file)
    named = old_python(tmp_path, python) if python != "none" else "python-that-nobody-has"
    places: dict[str, Any] = {"ENVFERRY_TOOL_DIR": str(tmp_path / "unpacked"), "PYTHON": named}
    target = tmp_path / "envferry"
    code, said = install(one_file, str(target), **places)
    assert code == 0, said
    assert "signed by a key of" in said
    assert "started the one file" in said
    assert f"{target}/bin/envferry install NAME@TAG --registry {one_file.parent}" in said
    environ = {"PATH": "/usr/bin:/bin", **places}
    started = subprocess.run([target / "bin/envferry", "ls"], env=environ,
                             capture_output=True, text=True, check=True)  # fmt: skip
    assert started.stdout == "started the one file\n"
    assert install(one_file, str(target), **places)[0] == 0  # over itself
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    code, said = install(one_file, str(tmp_path / "full"), **places)
    assert (code, "holds something else" in said) == (1, True)


@pytest.mark.parametrize("what", ["changed", "a stranger's", "unsigned", "no key on a strict host"])
def test_the_script_refuses_a_changed_run_file(one_file: Path, tmp_path: Path, what: str) -> None:
    require("openssl", find_program("openssl"))
    path = one_file / "envferry.run"
    environ: dict[str, Any] = {
        "PYTHON": "python-that-nobody-has",
        "ENVFERRY_TOOL_DIR": str(tmp_path / "unpacked"),
    }
    if what == "no key on a strict host":
        environ["ENVFERRY_REQUIRE_SIGNATURES"] = "1"
    else:
        trust(one_file)
    if what == "changed":
        path.write_bytes(path.read_bytes().replace(b"umask 022", b"umask 002"))
    elif what == "a stranger's":
        write_run_file(path, path.read_bytes() + b"evil", signer(THEIRS))
    elif what == "unsigned":
        (one_file / "envferry.run.attestation.json").unlink()
    code, said = install(one_file, str(tmp_path / "envferry"), **environ)
    assert code == 1
    assert "error: " in said
    assert not (tmp_path / "envferry").exists()


def test_a_tool_with_the_one_file_is_verified_whole(one_file: Path) -> None:
    assert verify_tool(one_file, (OURS.public,)).who == "ci@builder"
    (one_file / "envferry.run").write_bytes(b"evil")
    with pytest.raises(IntegrityError, match=r"envferry\.run was changed"):
        verify_tool(one_file, (OURS.public,))


def test_verify_checks_a_tool(tool: Path) -> None:
    """With the envferry that a host has already: it need not run the disk's script to know."""
    trust(tool)
    environ = {**os.environ, "ENVFERRY_TRUSTED_DIR": str(tool.parents[1] / "trusted.d")}
    for words, code in ((("tool",), 0), (("./tool",), 0), ((str(tool),), 0)):
        finished = subprocess.run([ENVFERRY, "verify", *words], cwd=tool.parent, env=environ,
                                  capture_output=True, text=True, check=False)  # fmt: skip
        assert finished.returncode == code, finished.stderr
        assert f"is signed by {OURS.public.id}" in finished.stdout
    change(tool, "changed script")
    finished = subprocess.run([ENVFERRY, "verify", tool], env=environ, capture_output=True,
                              text=True, check=False)  # fmt: skip
    assert finished.returncode == 8
    assert "install.sh was changed" in finished.stderr


def test_locked_versions_are_taken_where_they_ship(tmp_path: Path) -> None:
    """In pip's format, hashes and all; comments and options are not requirements."""
    assert "click>=8.1" in host_tool.wanted_requirements(tmp_path / "none")
    path = tmp_path / "tool-requirements.txt"
    path.write_text(
        "# written by uv\n--index-url https://example.org\nclick==8.1.7 ; python_version > '3' \\\n"
        "    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via envferry\n\nblake3==1.0.5\n"
    )
    assert host_tool.wanted_requirements(path) == (
        "click==8.1.7 ; python_version > '3' --hash=sha256:aa --hash=sha256:bb",
        "blake3==1.0.5",
    )
