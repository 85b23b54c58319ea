"""Locks: conda-lock's format, written and read."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from envferry.errors import NotFound, PipelineError, SpecError
from envferry.models import Checks, LockedPackage, Replacement, SpecOptions
from envferry.specs.locks import LockContents, read_lock, render_lock, write_lock

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = (
    LockedPackage(
        manager="pip",
        name="six",
        version="1.17.0",
        platform="linux-64",
        url="https://user:secret@example.org/six-1.17.0-py2.py3-none-any.whl",
        sha256="a" * 64,
    ),
    LockedPackage(
        manager="conda",
        name="python",
        version="3.10",
        platform="linux-64",
        url="file:///channel/linux-64/python-3.10-h1_0.conda",
        sha256="b" * 64,
        md5="c" * 32,
        build="h1_0",
        dependencies={"libz": "", "python_abi": "3.10.*"},
        record={"depends": ["libz", "python_abi 3.10.* *_cp310"], "constrains": ["größe <1"]},
    ),
)


def contents(packages: tuple[LockedPackage, ...] = PACKAGES) -> LockContents:
    return LockContents(
        name="torch",
        source="torch.yml",
        channels=("https://user:secret@example.org/t/tk-1234/channel",),
        packages=packages,
        content_hashes={"linux-64": "d" * 64},
        spec_digest="e" * 64,
        options=SpecOptions(version="1.10", checks=Checks(imports=("six",)), variables={"A": "b"}),
        tools={"uv": "1"},
        replacements=(
            Replacement(asked="python=3.10.1", used="python 3.10.*", platform="linux-64"),
        ),
    )


def test_a_lock_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "torch.conda-lock.yml"
    lock = write_lock(path, contents())
    assert lock == read_lock(path)
    assert lock.name == "torch"
    assert [package.name for package in lock.packages] == ["python", "six"]
    assert lock.packages[0] == PACKAGES[1]
    assert lock.options == contents().options
    assert lock.replacements == contents().replacements
    assert (lock.spec_digest, lock.content_hashes) == ("e" * 64, {"linux-64": "d" * 64})


def test_what_could_not_be_read_back_leaves_the_lock_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "torch.conda-lock.yml"
    write_lock(path, contents())
    before = path.read_bytes()
    nameless = replace(PACKAGES[0], sha256=None)
    with pytest.raises(SpecError, match="no hash for six"):
        write_lock(path, contents((nameless,)))
    assert path.read_bytes() == before


def test_no_credentials_are_written(tmp_path: Path) -> None:
    data = render_lock(contents())
    assert b"secret" not in data
    assert b"tk-1234" not in data
    assert b"https://example.org/six-1.17.0-py2.py3-none-any.whl" in data


def test_equal_contents_give_equal_bytes_and_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "torch.conda-lock.yml"
    write_lock(path, contents())
    before = path.stat()
    assert render_lock(contents(PACKAGES[::-1])) == path.read_bytes()
    write_lock(path, contents(PACKAGES[::-1]))
    assert path.stat().st_ino == before.st_ino


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_conda_lock_reads_what_we_write(tmp_path: Path) -> None:
    from conda_lock.lockfile import parse_conda_lock_file

    path = tmp_path / "torch.conda-lock.yml"
    write_lock(path, contents())
    theirs = parse_conda_lock_file(path)
    assert {(item.manager, item.name, item.version) for item in theirs.package} == {
        ("conda", "python", "3.10"),
        ("pip", "six", "1.17.0"),
    }


def test_a_lock_of_conda_lock_s_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "torch.conda-lock.yml"
    text = render_lock(contents()).decode()
    start, end = text.index("  custom_metadata:"), text.index("package:")
    path.write_text(text[:start] + text[end:])
    lock = read_lock(path)
    assert (lock.name, lock.spec_digest, lock.options) == ("torch", "", SpecOptions())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1\n", "version: 2\n", "has the lock format 2"),
        ("version: 1\n", "<<<<<<< HEAD\nversion: 1\n", "expected YAML"),
        ("manager: pip", "manager: npm", "Invalid enum value 'npm'"),
        ("https://example.org/", "https://[example.org/", "the URL of six is not valid"),
        ("package:\n", "packages:\n", "required field `package`"),
        ("  content_hash:", "  content_hushed:", "content_hash"),
        (f"    sha256: {'a' * 64}\n", "", "Expected `object`"),
        ("envferry_schema: '1'", "envferry_schema: '2'", "envferry's schema 2"),
        ("envferry_tools: '", "envferry_options: '[", "is repeated"),
        ('"checks"', '"chocks"', "unknown field `chocks`"),
    ],
)
def test_a_damaged_lock_is_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = tmp_path / "torch.conda-lock.yml"
    text = render_lock(contents()).decode()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SpecError) as caught:
        read_lock(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_missing_lock_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        read_lock(tmp_path / "torch.conda-lock.yml")
    assert caught.value.hint == "run `envferry lock torch`"


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 1500), length=st.integers(0, 300), put=st.binary(max_size=20))
def test_no_damage_brings_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, put: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conda-lock.yml"
    data = render_lock(contents())
    path.write_bytes(data[:start] + put + data[start + length :])
    with suppress(PipelineError):
        read_lock(path)


def test_two_thousand_packages_are_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "big.conda-lock.yml"
    many = tuple(
        LockedPackage(
            manager="pip",
            name=f"package-{number}",
            version="1.0",
            platform="linux-64",
            url=f"https://example.org/package_{number}-1.0-py3-none-any.whl",
            sha256=f"{number:064x}",
        )
        for number in range(2000)
    )
    write_lock(path, contents(many))
    started = time.process_time()
    assert len(read_lock(path).packages) == 2000
    # Measured 0.2 s; the slow path (pyyaml without libyaml) needs 4 s.
    assert time.process_time() - started < 2


def test_only_tokens_of_channels_leave_a_url() -> None:
    """A folder called `t` is not a token: the lock names the files that are there."""
    places = {
        "conda": "file:///srv/t/team/channel/linux-64/python-3.10-h1_0.conda",
        "pip": "https://example.org/t/torch/torch-2.8-py3-none-any.whl",
    }
    packages = tuple(
        msgspec.structs.replace(package, url=places[package.manager]) for package in PACKAGES
    )
    data = render_lock(contents(packages)).decode()
    assert all(f"url: {place}\n" in data for place in places.values())


def test_a_platform_may_be_locked_without_packages(tmp_path: Path) -> None:
    """As the lock of a prefix is that conda made and filled with nothing."""
    write_lock(tmp_path / "empty.conda-lock.yml", contents(packages=()))
    lock = read_lock(tmp_path / "empty.conda-lock.yml")
    assert lock.for_platform("linux-64") == ()
    with pytest.raises(SpecError, match=r"is not locked for linux-aarch64 \(locked: linux-64\)"):
        lock.for_platform("linux-aarch64")
