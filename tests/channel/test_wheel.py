"""Wheels into conda packages, without installing them."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import zstandard
from packaging.requirements import Requirement

from envferry.base.sha256 import sha256_hex
from envferry.channel.conda_package import PLACEHOLDER, write_conda_package
from envferry.channel.interpreter import Interpreter, running_interpreter
from envferry.channel.wheel import close_over, describe_wheel, fits, read_wheel
from envferry.channel.wheel_layout import stage_wheel
from envferry.errors import IntegrityError, SpecError
from tests.support.wheels import MODULE, make_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.channel.conda_package import CondaPackage
    from envferry.channel.wheel import ChannelWheel

NATIVE = "demo-1.0-{abi}-{abi}-manylinux_2_17_x86_64.manylinux2014_x86_64"


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    return running_interpreter()


def describe(
    interpreter: Interpreter, wheel: ChannelWheel, *others: ChannelWheel, asked: str = "demo"
) -> CondaPackage:
    closure = close_over(interpreter, [wheel, *others], [Requirement(asked)])
    return describe_wheel(wheel, closure)


def convert(interpreter: Interpreter, path: Path, work: Path) -> tuple[Path, dict[str, bytes]]:
    """Make a package of a wheel; return its file and its members, `info/` and content alike."""
    wheel = read_wheel(path)
    package = describe(interpreter, wheel)
    tree = work / "tree"
    tree.mkdir(parents=True)
    package = stage_wheel(wheel, package, interpreter, tree)
    target = work / f"{package.stem}.conda"
    write_conda_package(package, tree, target, timestamp=315532800)
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(target) as container:
        assert container.testzip() is None
        for name in container.namelist()[1:]:
            data = zstandard.ZstdDecompressor().stream_reader(container.read(name)).read()
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                assert {(item.uid, item.gid, item.mtime) for item in tar} == {(0, 0, 315532800)}
                for item in tar:
                    content = tar.extractfile(item)
                    members[item.name] = content.read() if content else b""
    return target, members


def decoded(members: dict[str, bytes], name: str) -> Any:
    return msgspec.json.decode(members[f"info/{name}.json"])


def test_a_pure_wheel_becomes_noarch_python(interpreter: Interpreter, tmp_path: Path) -> None:
    lines = "Requires-Python: >=3.8\nRequires-Dist: numpy<2\nLicense: MIT\nSummary: A demo\n"
    path = make_wheel(tmp_path, metadata=lines, files={"{info}/LICENSE": "All yours\n"})
    target, members = convert(interpreter, path, tmp_path / "work")
    index = decoded(members, "index")
    assert index["depends"] == ["python >=3.8", "numpy <2a0"]
    assert (index["subdir"], index["noarch"]) == ("noarch", "python")
    assert target.name.startswith("demo-1.0-pyh")
    assert decoded(members, "link")["noarch"]["entry_points"] == ["say-demo = demo:main"]
    assert decoded(members, "about") == {"license": "MIT", "summary": "A demo"}
    assert members["site-packages/demo.py"].decode() == MODULE
    assert members["site-packages/demo-1.0.dist-info/INSTALLER"] == b"conda\n"
    assert members["info/licenses/LICENSE"] == b"All yours\n"
    for entry in decoded(members, "paths")["paths"]:
        content = members[entry["_path"]]
        assert (entry["sha256"], entry["size_in_bytes"]) == (sha256_hex(content), len(content))
    listed = members["info/files"].decode().splitlines()
    assert listed == sorted(name for name in members if not name.startswith("info/"))


def test_a_native_wheel_is_for_one_python(interpreter: Interpreter, tmp_path: Path) -> None:
    stem = NATIVE.format(abi=interpreter.abi)
    files = {
        "{data}/scripts/run-demo": "#!python\nimport demo\n",
        "{data}/scripts/plain": "#!/bin/sh\nexit 0\n",
        "{data}/data/share/demo/x": "x",
        "{data}/headers/demo.h": "int demo;\n",
        "{data}/platlib/other.py": "",
        "__pycache__/demo.cpython-311.pyc": "stale",
    }
    _, members = convert(interpreter, make_wheel(tmp_path, stem, files=files), tmp_path / "work")
    index = decoded(members, "index")
    minor = interpreter.minor
    assert index["depends"][0] == "__glibc >=2.17,<3.0.a0"
    assert index["depends"][1].startswith(f"python >={minor},<3.")
    assert index["depends"][2] == f"python_abi {minor}.* *_{interpreter.abi}"
    assert index["build"].startswith(f"py{interpreter.abi[2:]}h")
    site_packages = f"lib/python{minor}/site-packages"
    assert sorted(name for name in members if not name.startswith("info/")) == sorted(
        [
            *(f"bin/{name}" for name in ("plain", "run-demo", "say-demo")),
            f"include/python{minor}/demo/demo.h",
            *(f"{site_packages}/{name}" for name in ("demo.py", "other.py")),
            *(
                f"{site_packages}/demo-1.0.dist-info/{name}"
                for name in ("INSTALLER", "METADATA", "RECORD", "WHEEL", "entry_points.txt")
            ),
            "share/demo/x",
        ]
    )
    holders = {
        entry["_path"]: entry["file_mode"]
        for entry in decoded(members, "paths")["paths"]
        if entry.get("prefix_placeholder") == PLACEHOLDER
    }
    assert holders == {"bin/run-demo": "text", "bin/say-demo": "text"}
    record = members[f"{site_packages}/demo-1.0.dist-info/RECORD"].decode()
    rows = {row[0]: row[1:] for row in csv.reader(record.splitlines())}
    assert rows["../../../bin/run-demo"] == ["", ""]
    assert rows["../../../bin/plain"][1] == "17"
    assert rows["demo.py"][1] == str(len(MODULE))
    assert rows["demo-1.0.dist-info/RECORD"] == ["", ""]
    assert len(rows) == len(record.splitlines()) == 12


def test_the_same_wheel_gives_the_same_bytes(interpreter: Interpreter, tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    one, _ = convert(interpreter, path, tmp_path / "one")
    two, _ = convert(interpreter, path, tmp_path / "much" / "deeper")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_requirements_that_differ_between_pythons_bind_the_package(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    lines = 'Requires-Python: >=3.8\nRequires-Dist: tomli; python_version < "3.9"\n'
    package = describe(interpreter, read_wheel(make_wheel(tmp_path, metadata=lines)))
    assert package.depends[0] == f"python >={interpreter.minor},<{interpreter.next_minor}"
    bound = lines.replace(">=3.8", ">=3.9")
    package = describe(interpreter, read_wheel(make_wheel(tmp_path, metadata=bound)))
    assert package.depends == ("python >=3.9",)


def test_extras_that_are_asked_for_are_folded_in(interpreter: Interpreter, tmp_path: Path) -> None:
    lines = 'Provides-Extra: fast\nRequires-Dist: quick>=2; extra == "fast"\n'
    demo = read_wheel(make_wheel(tmp_path, metadata=lines))
    user = make_wheel(tmp_path, "user-1-py3-none-any", metadata="Requires-Dist: Demo[Fast]\n")
    assert describe(interpreter, demo).depends == ("python",)
    asked = describe(interpreter, demo, asked="demo[fast]")
    assert asked.depends == ("python", "quick >=2")
    assert describe(interpreter, demo, read_wheel(user)).depends == asked.depends
    assert describe(interpreter, demo).build != asked.build


def test_an_extra_that_asks_for_another_of_itself(interpreter: Interpreter, tmp_path: Path) -> None:
    lines = 'Requires-Dist: demo[a]; extra == "all"\nRequires-Dist: quick; extra == "a"\n'
    demo = read_wheel(make_wheel(tmp_path, metadata=lines))
    assert describe(interpreter, demo, asked="demo[all]").depends == ("python", "quick")


@pytest.mark.parametrize(
    ("stem", "metadata", "expected"),
    [
        ("demo-1-py3-none-any", "", True),
        ("demo-1-py2.py3-none-any", "", True),
        ("demo-1-cp38-abi3-manylinux_2_17_x86_64", "", True),
        ("demo-1-py3-none-manylinux2014_x86_64", "", True),
        ("demo-1-py3-none-linux_x86_64", "", True),
        ("demo-1-cp27-cp27m-manylinux1_x86_64", "", False),
        ("demo-1-cp38-cp38-manylinux_2_17_x86_64", "", False),
        ("demo-1-py3-none-win_amd64", "", False),
        ("demo-1-py3-none-manylinux_2_99_x86_64", "", False),
        ("demo-1-py3-none-any", "Requires-Python: <3\n", False),
        ("demo-1-py3-none-any", "Requires-Python: >=3.6.*\n", True),
    ],
)
def test_tags_and_requires_python_decide_what_fits(
    interpreter: Interpreter, tmp_path: Path, stem: str, metadata: str, expected: bool
) -> None:
    wheel = read_wheel(make_wheel(tmp_path, stem, metadata=metadata))
    assert fits(wheel, interpreter) is expected


@pytest.mark.parametrize("name", ["../out.py", "/etc/out", "{data}/scripts/../../../out"])
def test_a_file_that_leads_out_is_refused(
    interpreter: Interpreter, tmp_path: Path, name: str
) -> None:
    path = make_wheel(tmp_path, files={name: "x"})
    with pytest.raises(SpecError, match="points outside the environment"):
        convert(interpreter, path, tmp_path / "work")


@pytest.mark.parametrize("name", ["{data}/nonsense/x", "{data}/data/info/x"])
def test_a_file_without_a_place_is_refused(
    interpreter: Interpreter, tmp_path: Path, name: str
) -> None:
    with pytest.raises(SpecError, match=r"demo-1\.0\.data/"):
        convert(interpreter, make_wheel(tmp_path, files={name: "x"}), tmp_path / "work")


def test_a_file_that_record_denies_is_damaged(interpreter: Interpreter, tmp_path: Path) -> None:
    path = make_wheel(tmp_path, record={"demo.py": "demo.py,sha256=AAAA,3"})
    with pytest.raises(IntegrityError, match=r"demo\.py is damaged: RECORD has sha256=AAAA"):
        convert(interpreter, path, tmp_path / "work")


def test_flipped_bytes_are_damage(interpreter: Interpreter, tmp_path: Path) -> None:
    path = make_wheel(tmp_path, files={"big.txt": "".join(map(str, range(9999)))})
    content = bytearray(path.read_bytes())
    middle = content.index(b"big.txt") + 2000
    content[middle] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"demo-1\.0-py3-none-any\.whl"):
        convert(interpreter, path, tmp_path / "work")


@pytest.mark.parametrize(
    ("stem", "files", "expected"),
    [
        ("nonsense", None, "nonsense.whl"),
        ("demo-1.0-py3-none-any", {"other-1.dist-info/METADATA": ""}, "2 .dist-info directories"),
        ("demo-1.0-py3-none-any", {"{info}/entry_points.txt": "[x\n"}, "section headers"),
        (
            "demo-1.0-py3-none-any",
            {"{info}/entry_points.txt": "[console_scripts]\n../x = a:b\n"},
            "entry point",
        ),
        ("demo-1.0-py3-none-any", {"{info}/METADATA": "Requires-Dist: ???\n"}, r"\?\?\?"),
    ],
)
def test_a_bad_wheel_is_named(
    tmp_path: Path, stem: str, files: dict[str, str] | None, expected: str
) -> None:
    path = make_wheel(tmp_path, "demo-1.0-py3-none-any", files=files)
    path = path.rename(path.with_name(f"{stem}.whl"))
    with pytest.raises(SpecError, match=expected) as caught:
        read_wheel(path)
    assert str(path) in caught.value.message


def test_a_text_that_is_no_zip_is_a_bad_wheel(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    path.write_text("no zip")
    with pytest.raises(SpecError, match="zip"):
        read_wheel(path)
