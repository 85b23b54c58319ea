"""Locks of other tools and virtual environments become ours: against a channel of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes

from envferry.errors import SpecError
from envferry.lock.existing_lock import check_lock
from envferry.lock.lock_import import lock_source, needed_glibc
from envferry.names import current_platform
from envferry.progress import Silent
from envferry.specs.importing.conversion import ImportOptions, import_spec
from envferry.specs.reading import read_spec
from tests.support.tiny_channel import make_channel, python_packages
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Lock

pytestmark = pytest.mark.skipif(current_platform() != "linux-64", reason="the locks are for it")


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_channel(tmp_path_factory.mktemp("channels") / "tiny", python_packages())


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    make_wheel(directory, "new-1.0-py3-none-any")
    for python in ("cp310", "cp311"):
        make_wheel(directory, f"native-1.0-{python}-{python}-manylinux_2_17_x86_64")
    return directory


def sha256(path: Path) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(path.read_bytes())
    return digest.finalize().hex()


def adopted(source: Path, text: str, channel: Path, **options: str) -> tuple[Lock, list[str]]:
    """Import a lock as the command does, and check that its spec is what it was made for."""
    if text:
        source.write_text(text)
    specs = source.parent / "specs"
    specs.mkdir()
    asked = ImportOptions(name="n", channels=(channel.as_uri(),), **options)  # type: ignore[arg-type]
    imported = import_spec(source, specs, asked)
    imported.spec.path.write_text(imported.text)
    lock, notes = lock_source(imported, source.name, Silent())
    assert check_lock(read_spec(imported.spec.path)).packages == lock.packages
    return lock, notes


def files(lock: Lock) -> dict[str, str]:
    return {item.name: item.file_name for item in lock.packages}


@pytest.mark.parametrize("kind", ["conda-lock.yml", "pixi.lock", "explicit.txt"])
def test_a_lock_of_files_is_taken_as_it_is(
    tmp_path: Path, channel: Path, wheels: Path, kind: str
) -> None:
    python = next(channel.glob("linux-64/python-3.10.13-*"))
    wheel = wheels / "new-1.0-py3-none-any.whl"
    digest = sha256(python)
    texts = {
        "conda-lock.yml": (
            f"version: 1\nmetadata: {{channels: [{{url: '{channel.as_uri()}'}}]}}\npackage:\n"
            "- {name: python, version: 3.10.13, manager: conda, platform: linux-64, "
            f"url: '{python.as_uri()}', hash: {{md5: '{'0' * 32}', sha256: '{digest}'}}}}\n"
            "- {name: new, version: '1.0', manager: pip, platform: linux-64, "
            f"url: '{wheel.as_uri()}', hash: {{}}}}\n"
        ),
        "pixi.lock": (
            f"version: 6\nenvironments: {{default: {{channels: [{{url: '{channel.as_uri()}'}}], "
            f"packages: {{linux-64: [{{conda: '{python.as_uri()}'}}, {{pypi: '{wheel.as_uri()}'}}]"
            f"}}}}}}\npackages:\n- {{conda: '{python.as_uri()}', sha256: '{digest}'}}\n"
            f"- {{pypi: '{wheel.as_uri()}', name: new, version: '1.0'}}\n"
        ),
        "explicit.txt": (
            f"@EXPLICIT\n{python.as_uri()}#sha256:{digest}\n# pip new @ {wheel.as_uri()}\n"
        ),
    }
    lock, notes = adopted(tmp_path / kind, texts[kind], channel)
    assert files(lock) == {"python": python.name, "new": wheel.name}
    assert {item.name: item.sha256 for item in lock.packages} == {
        "python": digest,
        "new": sha256(wheel),
    }
    assert notes == ["new 1.0 had no hash: computed from the file itself"]


def test_a_folder_that_uv_takes_for_an_index_has_no_hashes(
    tmp_path: Path, channel: Path, wheels: Path
) -> None:
    folder = "../" * len(tmp_path.parts) + str(wheels).lstrip("/")
    text = (
        "version = 1\n[[package]]\nname = 'app'\nversion = '1'\nsource = {virtual = '.'}\n"
        "dependencies = [{name = 'new'}]\n"
        f"[[package]]\nname = 'new'\nversion = '1.0'\nsource = {{registry = '{folder}'}}\n"
        "wheels = [{path = 'new-1.0-py3-none-any.whl'}]\n"
    )
    lock, notes = adopted(tmp_path / "uv.lock", text, channel, python="3.10")
    wheel = wheels / "new-1.0-py3-none-any.whl"
    assert {item.name: item.sha256 for item in lock.packages}["new"] == sha256(wheel)
    assert "new 1.0 had no hash: computed from the file itself" in notes


@pytest.mark.parametrize("kind", ["uv.lock", "pylock.toml"])
@pytest.mark.parametrize("python", ["3.10", "3.11"])
def test_the_python_chooses_among_the_files_of_a_lock(
    tmp_path: Path, channel: Path, wheels: Path, kind: str, python: str
) -> None:
    listed = sorted(wheels.glob("native-*"))
    uv = ", ".join(
        f'{{url = "{item.as_uri()}", hash = "sha256:{sha256(item)}"}}' for item in listed
    )
    pylock = ", ".join(
        f'{{url = "{item.as_uri()}", hashes = {{sha256 = "{sha256(item)}"}}}}' for item in listed
    )
    texts = {
        "uv.lock": (
            "version = 1\n[[package]]\nname = 'app'\nversion = '1'\nsource = {virtual = '.'}\n"
            "dependencies = [{name = 'native'}]\n"
            "[[package]]\nname = 'native'\nversion = '1.0'\n"
            f"source = {{registry = 'https://index.example.org/s'}}\nwheels = [{uv}]\n"
        ),
        "pylock.toml": (
            "lock-version = '1.0'\ncreated-by = 'x'\n[[packages]]\nname = 'native'\n"
            f"version = '1.0'\nwheels = [{pylock}]\n"
        ),
    }
    lock, _ = adopted(tmp_path / kind, texts[kind], channel, python=python)
    tag = f"cp{python.replace('.', '')}"
    assert files(lock)["native"] == f"native-1.0-{tag}-{tag}-manylinux_2_17_x86_64.whl"
    assert files(lock)["python"].startswith(f"python-{python}.")


def test_a_virtual_environment_is_locked_by_what_is_in_it(
    tmp_path: Path, channel: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    venv = tmp_path / "venv"
    for name in ("native", "new"):
        info = venv / f"lib/python3.11/site-packages/{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (venv / "pyvenv.cfg").write_text("version = 3.11.5\n")
    lock, notes = adopted(venv, "", channel)
    assert files(lock)["native"] == "native-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"
    assert {item.name for item in lock.packages if item.manager == "pip"} == {"native", "new"}
    assert notes == []


def test_a_glibc_that_this_machine_has() -> None:
    hint = "if the hosts offer it, declare it: `envferry: {system: {glibc: 'VERSION'}}`"
    assert needed_glibc(SpecError("x", hint=hint.replace("VERSION", "2.17"))) == "2.17"
    assert needed_glibc(SpecError("x", hint=hint.replace("VERSION", "9.99"))) is None
    assert needed_glibc(SpecError("x", hint="correct that line")) is None
