"""Which files of conda packages a wheel would overwrite."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from envferry.build.inside.clobbers import (
    find_clobbers,
    installed_distributions,
    wheel_files,
    written_files,
)
from envferry.build.inside.conda_meta import CondaRecords
from envferry.build.request import WheelFile
from envferry.errors import SpecError
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from pathlib import Path

SITE = "lib/python3.10/site-packages"


def test_a_vendored_distribution_is_not_an_installed_one() -> None:
    """setuptools carries packaging inside itself; pip leaves that alone."""
    own = f"{SITE}/setuptools-80.9.0.dist-info/METADATA"
    egg = f"{SITE}/Some_Thing-1.0-py3.10.egg-info/PKG-INFO"
    vendored = f"{SITE}/setuptools/_vendor/packaging-24.2.dist-info/METADATA"
    elsewhere = "share/other-1.0.dist-info/METADATA"
    old = f"{SITE}/by_distutils-2.0-py3.10.egg-info"
    files = (own, egg, old, vendored, elsewhere, "bin/python")
    assert installed_distributions(files, SITE) == {
        "setuptools": own,
        "some-thing": egg,
        "by-distutils": old,
    }


def files_of(path: Path) -> set[str]:
    """Return where the files of a wheel go."""
    return set(wheel_files(WheelFile(path=str(path), name="evil", version="1", sha256=""), SITE))


@pytest.mark.parametrize("member", ["./there/a.py", "there//a.py", "there/./a.py"])
def test_a_file_is_known_by_where_it_is_written(tmp_path: Path, member: str) -> None:
    assert f"{SITE}/there/a.py" in files_of(make_wheel(tmp_path, files={member: ""}))


def test_special_directories_of_a_wheel(tmp_path: Path) -> None:
    files = {
        "{data}/data/share/a": "",
        "{data}/headers/demo.h": "",
        "{data}/platlib/c.py": "",
        "{data}/purelib/b.py": "",
        "{data}/scripts/tool": "",
    }
    found = files_of(make_wheel(tmp_path, files=files))
    assert {"share/a", "bin/tool", f"{SITE}/b.py", f"{SITE}/c.py", "bin/say-demo"} <= found
    assert "include/python3.10/evil/demo.h" in found  # by the package's name
    assert f"{SITE}/demo-1.0.dist-info/INSTALLER" in found  # by what installs it


@pytest.mark.parametrize("member", ["../a.py", "/etc/a", "x/../there/a.py", "{data}/data/../../a"])
def test_a_wheel_with_files_that_lead_elsewhere(tmp_path: Path, member: str) -> None:
    wheel = make_wheel(tmp_path, files={member: ""})
    with pytest.raises(
        SpecError, match=r"demo-1.0-py3-none-any.whl .*points outside the environment"
    ):
        files_of(wheel)


@pytest.mark.parametrize(
    "member", ["{data}/data/conda-meta/a-1-0.json", "{data}/data/./conda-meta/history"]
)
def test_a_wheel_with_records_of_conda(tmp_path: Path, member: str) -> None:
    with pytest.raises(SpecError, match="would be one of conda's own records"):
        files_of(make_wheel(tmp_path, files={member: ""}))


def test_a_file_lands_where_the_links_of_the_prefix_lead(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib64").symlink_to("lib")
    wheel = make_wheel(tmp_path, files={"{data}/data/lib64/deep/a": "", "{data}/data/top": ""})
    request = WheelFile(path=str(wheel), name="demo", version="1.0", sha256="")
    found = written_files(request, CondaRecords(prefix, {}))
    assert {"lib/deep/a", "top"} <= found.keys()
    record = {"name": "owner", "files": ["lib/deep/a"], "version": "1"}
    [clobber] = find_clobbers({request: found}, CondaRecords(prefix, {prefix / "x": record}))
    assert (clobber.file, clobber.owner) == ("lib/deep/a", "owner")


def test_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    path.write_bytes(b"nonsense")
    with pytest.raises(SpecError, match="is not a valid wheel: File is not a zip file"):
        files_of(path)
    damaged = bytearray(make_wheel(tmp_path).read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("demo-1.0.dist-info/entry_points.txt")
    damaged[info.header_offset + 30 + len(info.filename) + 5] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(SpecError, match=r"any\.whl is not a valid wheel: "):
        files_of(path)
