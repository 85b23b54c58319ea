"""Locks of other tools: the same files and hashes come out, and a spec that asks for just these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.specs.importing.conversion import Imported, ImportOptions, import_spec
from envferry.specs.importing.file_kinds import FileKind
from envferry.specs.importing.foreign_lock import git_url
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import LockedPackage

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "ab" * 32
MD5 = "cd" * 16
PUBLIC = "https://conda.anaconda.org/conda-forge"
pytestmark = pytest.mark.skipif(current_platform() != "linux-64", reason="the locks are for it")


def read(path: Path, text: str, **options: str) -> Imported:
    path.write_text(text)
    specs = path.parent / "specs"
    specs.mkdir(exist_ok=True)
    given: dict[str, str] = {"name": "n", **options}
    found = import_spec(path, specs, ImportOptions(**given))  # type: ignore[arg-type]
    found.spec.path.write_text(found.text)
    return found


def packages(found: Imported) -> dict[tuple[str, str], LockedPackage]:
    assert found.lock is not None
    return {(item.platform, item.name): item for item in found.lock.packages}


CONDA_LOCK = f"""\
version: 1
metadata:
  content_hash: {{linux-64: aa, osx-arm64: bb, win-64: cc}}
  channels: [{{url: conda-forge, used_env_vars: []}}]
  platforms: [linux-64, osx-arm64, win-64]
  sources: [environment.yml]
package:
- {{name: python, version: 3.11.7, manager: conda, platform: linux-64, dependencies: {{xz: '>=5'}},
   url: '{PUBLIC}/linux-64/python-3.11.7-h1_0_cpython.conda',
   hash: {{md5: {MD5}, sha256: {SHA}}}, category: main, optional: false}}
- {{name: python, version: 3.11.8, manager: conda, platform: osx-arm64, dependencies: {{}},
   url: '{PUBLIC}/osx-arm64/python-3.11.8-h2_0_cpython.conda', hash: {{md5: {MD5}}}}}
- {{name: tz, version: 2025a, manager: conda, platform: linux-64, dependencies: {{}},
   url: '{PUBLIC}/noarch/tz-2025a-h_0.tar.bz2', hash: {{md5: {MD5}}}}}
- {{name: tz, version: 2025a, manager: conda, platform: osx-arm64, dependencies: {{}},
   url: '{PUBLIC}/noarch/tz-2025a-h_0.tar.bz2', hash: {{md5: {MD5}}}}}
- {{name: pywin, version: '1', manager: conda, platform: win-64, dependencies: {{}},
   url: '{PUBLIC}/win-64/pywin-1-h_0.conda', hash: {{md5: {MD5}}}}}
- {{name: rich, version: '14.0', manager: pip, platform: linux-64, dependencies: {{}},
   url: 'https://f.example.org/rich-14.0-py3-none-any.whl', hash: {{sha256: {SHA}}}}}
- {{name: bee, version: '1.0', manager: pip, platform: linux-64, dependencies: {{}},
   url: 'git+https://g.example.org/bee@{COMMIT}', hash: {{sha256: {COMMIT}}}}}
- {{name: odd, version: '1.0', manager: pip, platform: linux-64, dependencies: {{}},
   url: 'https://f.example.org/odd-1.0-py3-none-any.whl', hash: {{}},
   source: {{type: url, url: 'https://f.example.org/odd-1.0-py3-none-any.whl'}}}}
- {{name: docs, version: '1.0', manager: pip, platform: linux-64, dependencies: {{}},
   url: 'https://f.example.org/docs-1.0-py3-none-any.whl', hash: {{sha256: {SHA}}},
   category: docs, optional: true}}
"""


def test_a_conda_lock(tmp_path: Path) -> None:
    found = read(tmp_path / "conda-lock.yml", CONDA_LOCK)
    assert found.kind is FileKind.CONDA_LOCK
    linux = read_spec(found.spec.path, platform="linux-64")
    mac = read_spec(found.spec.path, platform="osx-arm64")
    assert linux.channels == ("conda-forge",)
    assert linux.conda == ("python=3.11.7=h1_0_cpython", "tz=2025a=h_0", "pip")
    assert {*mac.conda} == {"python=3.11.8=h2_0_cpython", "tz=2025a=h_0", "pip"}
    assert linux.pip == (
        "rich==14.0",
        f"bee @ git+https://g.example.org/bee@{COMMIT}",
        "odd @ https://f.example.org/odd-1.0-py3-none-any.whl",
    )
    assert mac.pip == ()
    locked = packages(found)
    python = locked["linux-64", "python"]
    assert (python.sha256, python.md5, python.build) == (SHA, MD5, "h1_0_cpython")
    assert python.dependencies == {"xz": ">=5"}
    assert locked["linux-64", "bee"].kind == "git"
    assert locked["linux-64", "odd"].sha256 is None
    assert "not carried over: 1 packages for win-64: envferry does not lock for it" in found.notes
    assert any("docs 1.0: in the category docs" in note for note in found.notes)


PIXI_LOCK = f"""\
version: 6
environments:
  default:
    channels: [{{url: '{PUBLIC}/'}}, {{url: 'https://conda.corp.example/internal/'}}]
    indexes: ['https://i.example.org/simple']
    packages:
      linux-64:
      - conda: {PUBLIC}/linux-64/python-3.11.7-h1_0_cpython.conda
      - conda: ../source-built
      - pypi: https://f.example.org/rich-14.0-py3-none-any.whl
      - pypi: git+https://g.example.org/bee.git?tag=v1&subdirectory=py#{COMMIT}
      - pypi: ./app
      win-64:
      - conda: {PUBLIC}/win-64/python-3.11.7-h1_0_cpython.conda
  test: {{channels: [], packages: {{}}}}
packages:
- conda: {PUBLIC}/linux-64/python-3.11.7-h1_0_cpython.conda
  sha256: {SHA}
  md5: {MD5}
  depends: [__glibc >=2.17, 'xz >=5,<6', 'xz =5.4', tzdata, 'python_abi 3.11.* *_cp311']
- conda: {PUBLIC}/win-64/python-3.11.7-h1_0_cpython.conda
  sha256: {SHA}
- conda: ../source-built
  name: source-built
- pypi: https://f.example.org/rich-14.0-py3-none-any.whl
  name: rich
  version: '14.0'
  sha256: {SHA}
- pypi: git+https://g.example.org/bee.git?tag=v1&subdirectory=py#{COMMIT}
  name: bee
  version: '1.0'
- pypi: ./app
  name: App_X
  version: '0.1'
"""


def test_a_pixi_lock(tmp_path: Path) -> None:
    found = read(tmp_path / "pixi.lock", PIXI_LOCK)
    assert found.kind is FileKind.PIXI_LOCK
    assert found.spec.channels == ("conda-forge", "https://conda.corp.example/internal/")
    assert found.spec.conda == ("python=3.11.7=h1_0_cpython", "pip")
    bee = f"git+https://g.example.org/bee.git@{COMMIT}#subdirectory=py"
    app = (tmp_path / "app").as_uri() + "/"
    assert found.spec.pip == (
        "--extra-index-url https://i.example.org/simple",
        "rich==14.0",
        f"bee @ {bee}",
        f"app-x @ {app}",
    )
    locked = packages(found)
    assert (locked["linux-64", "python"].sha256, locked["linux-64", "python"].md5) == (SHA, MD5)
    # As our own locks have them, or a build would take the index's record for a patched one.
    assert locked["linux-64", "python"].dependencies == {
        "__glibc": ">=2.17",
        "xz": "5.4.*,>=5,<6",
        "tzdata": "",
        "python_abi": "3.11.*",
    }
    assert (locked["linux-64", "bee"].url, locked["linux-64", "bee"].sha256) == (bee, COMMIT)
    assert locked["linux-64", "app-x"].kind == "directory"
    notes = "\n".join(found.notes)
    for lost in ("1 packages for win-64", "../source-built", "the environment test"):
        assert lost in notes


def test_archives_that_a_pixi_lock_has_from_elsewhere(tmp_path: Path) -> None:
    text = f"""\
version: 6
environments:
  default:
    channels: [{{url: '{PUBLIC}/'}}]
    packages:
      linux-64:
      - conda: {PUBLIC}/linux-64/python-3.11.7-h1_0_cpython.conda
      - pypi: direct+https://f.example.org/click-8.1-py3-none-any.whl
      - pypi: ./links/secret-2.0-py3-none-any.whl
packages:
- conda: {PUBLIC}/linux-64/python-3.11.7-h1_0_cpython.conda
  sha256: {SHA}
- pypi: direct+https://f.example.org/click-8.1-py3-none-any.whl
  name: click
  version: '8.1'
  sha256: {SHA}
- pypi: ./links/secret-2.0-py3-none-any.whl
  name: secret
  version: '2.0'
  sha256: {SHA}
"""
    found = read(tmp_path / "pixi.lock", text)
    click = "https://f.example.org/click-8.1-py3-none-any.whl"
    secret = (tmp_path / "links" / "secret-2.0-py3-none-any.whl").as_uri()
    # By its version alone, an index would be asked for it, where the name may be anybody's.
    assert found.spec.pip == (f"click @ {click}", f"secret @ {secret}")
    locked = packages(found)
    assert locked["linux-64", "click"].url == click
    assert locked["linux-64", "secret"].url == secret


@pytest.mark.parametrize(
    ("name", "text", "words", "hint"),
    [
        (
            "pixi.lock",
            "version: 6\nenvironments: {default: {channels: [], packages: {linux-64: ["
            "{conda: ../own}]}}}\npackages: [{conda: ../own, name: own}]\n",
            r"can lock \(../own: built by pixi, not available from a channel\)",
            "import a lock of published packages for one of linux-64",
        ),
        (
            "conda-lock.yml",
            "version: 1\nmetadata: {channels: []}\npackage: ["
            "{name: vc, platform: win-64, version: '1', manager: conda, url: u}]\n",
            r"can lock \(1 packages for win-64: envferry does not lock for it\)",
            "import a lock of published packages for one of linux-64",
        ),
        (
            "pixi.lock",
            "version: 6\nenvironments: {default: {channels: [], packages: {}}}\npackages: []\n",
            "contains no packages$",
            "add one to what it locks, then lock that again",
        ),
        (
            "pixi.lock",
            "version: 3\nmetadata: {channels: []}\npackage: []\n",
            "the lock format 3, expected 1",
            "regenerate it with the tool that wrote it",
        ),
    ],
)
def test_locks_of_which_nothing_remains(
    tmp_path: Path, name: str, text: str, words: str, hint: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        read(tmp_path / name, text)
    assert (caught.value.hint or "").startswith(hint)


def test_an_empty_environment_of_a_pixi_lock(tmp_path: Path) -> None:
    text = PIXI_LOCK.replace("  test:", "  default:\n    packages: {}\n  test:")
    text = text.replace("  default:", "  gpu:", 1)
    with pytest.raises(SpecError, match=r"the environment default of .* is empty") as caught:
        read(tmp_path / "pixi.lock", text)
    assert caught.value.hint == "choose another with `--name`: gpu"


PIXI_LOCK_7 = f"""\
version: 7
platforms:
- name: big
  subdir: linux-64
  virtual-packages: [__cuda=13, __glibc=2.28, __unix=0=0]
- name: linux-64
  virtual-packages: [__unix=0=0, __linux=4.18, __glibc=2.34, __archspec=0=x86_64]
- name: board
  subdir: linux-aarch64
  virtual-packages: [__cuda=12.8]
- name: win-64
environments:
  default:
    channels:
    - url: https://conda.anaconda.org/conda-forge/
    packages:
      big:
      - conda: https://conda.anaconda.org/conda-forge/linux-64/gpu-1-h1_0.conda
      board:
      - conda: https://conda.anaconda.org/conda-forge/noarch/tool-1-h1_0.conda
      linux-64:
      - conda: https://conda.anaconda.org/conda-forge/noarch/tool-1-h1_0.conda
      - conda_source: own[38d076cf] @ .
      win-64:
      - conda: https://conda.anaconda.org/conda-forge/noarch/tool-1-h1_0.conda
packages:
- conda: https://conda.anaconda.org/conda-forge/linux-64/gpu-1-h1_0.conda
  sha256: {SHA}
- conda: https://conda.anaconda.org/conda-forge/noarch/tool-1-h1_0.conda
  sha256: {SHA}
- conda_source: own[38d076cf] @ .
  depends:
  - tool
"""


def test_a_pixi_lock_whose_platforms_have_names(tmp_path: Path) -> None:
    found = read(tmp_path / "pixi.lock", PIXI_LOCK_7)
    assert {*packages(found)} == {("linux-64", "tool"), ("linux-aarch64", "tool")}
    assert found.spec.conda == ("tool=1=h1_0",)
    system = found.spec.options.system
    assert (system.glibc, system.cuda) == ("2.34", "12.8")
    notes = "\n".join(found.notes)
    for lost in (
        "1 packages for big: for linux-64, those of linux-64 are read",
        "1 packages for win-64: envferry does not lock for it",
        "own[38d076cf] @ .: built by pixi",
    ):
        assert lost in notes


def test_which_environment_of_a_pixi_lock(tmp_path: Path) -> None:
    text = PIXI_LOCK.replace("default:", "gpu:")
    with pytest.raises(SpecError) as caught:
        read(tmp_path / "pixi.lock", text)
    assert caught.value.hint == "choose one with `--name`: gpu, test"
    assert len(packages(read(tmp_path / "pixi.lock", text, name="gpu"))) == 4


UV_LOCK_OF_FILES = f"""\
version = 1
requires-python = ">=3.11"

[[package]]
name = "app"
version = "0"
source = {{ virtual = "." }}
dependencies = [{{ name = "fl" }}, {{ name = "loc" }}]

[[package]]
name = "fl"
version = "1"
source = {{ registry = "flat" }}
wheels = [{{ path = "fl-1-py3-none-any.whl" }}]

[[package]]
name = "loc"
version = "1"
source = {{ path = "wheels/loc-1-py3-none-any.whl" }}
wheels = [{{ filename = "loc-1-py3-none-any.whl", hash = "sha256:{SHA}" }}]
"""


def test_files_that_a_uv_lock_has_from_folders(tmp_path: Path) -> None:
    found = read(tmp_path / "uv.lock", UV_LOCK_OF_FILES, python="3.11")
    loc = tmp_path / "wheels" / "loc-1-py3-none-any.whl"
    assert found.spec.pip == (
        f"--find-links {tmp_path / 'flat'}",
        "fl==1",
        f"loc @ {loc.as_uri()}",
    )
    assert found.lock is not None
    paths = [entry["wheels"][0]["path"] for entry in found.lock.candidates]
    assert paths == ["flat/fl-1-py3-none-any.whl", "wheels/loc-1-py3-none-any.whl"]


def test_files_that_a_pylock_has_from_folders(tmp_path: Path) -> None:
    text = (
        'lock-version = "1.0"\ncreated-by = "x"\n'
        '[[packages]]\nname = "e"\nversion = "1"\n'
        'wheels = [{name = "e-1-py3-none-any.whl", path = "w/e-1-py3-none-any.whl", '
        f'hashes = {{sha256 = "{SHA}"}}}}]\n'
    )
    found = read(tmp_path / "pylock.toml", text, python="3.11")
    assert found.spec.pip == (f"--find-links {tmp_path / 'w'}", "e==1")


UV_LOCK = f"""\
version = 1
revision = 3
requires-python = ">=3.9"
resolution-markers = ["python_full_version >= '3.11'", "python_full_version < '3.11'"]

[[package]]
name = "app"
version = "0.1"
source = {{ editable = "." }}
dependencies = [
    {{ name = "numpy", version = "1.26", source = {{ registry = "https://p.example.org/simple" }},
       marker = "python_full_version < '3.11'" }},
    {{ name = "numpy", version = "2.3", source = {{ registry = "https://p.example.org/simple" }},
       marker = "python_full_version >= '3.11'" }},
    {{ name = "colorama", marker = "sys_platform == 'win32'" }},
    {{ name = "uvicorn", extra = ["standard"] }},
    {{ name = "bee" }},
]

[package.optional-dependencies]
docs = [{{ name = "sphinx" }}]

[[package]]
name = "numpy"
version = "1.26"
source = {{ registry = "https://p.example.org/simple" }}
wheels = [{{ url = "https://f.example.org/numpy-1.26-cp310-cp310-manylinux_2_17_x86_64.whl",
             hash = "sha256:{SHA}" }}]

[[package]]
name = "numpy"
version = "2.3"
source = {{ registry = "https://p.example.org/simple" }}
resolution-markers = ["python_full_version >= '3.11'"]
wheels = [{{ url = "https://f.example.org/numpy-2.3-cp311-cp311-manylinux_2_17_x86_64.whl",
             hash = "sha256:{SHA}" }}]

[[package]]
name = "colorama"
version = "0.4"
source = {{ registry = "https://p.example.org/simple" }}

[[package]]
name = "uvicorn"
version = "0.3"
source = {{ registry = "https://i.example.org/simple" }}
sdist = {{ url = "https://i.example.org/uvicorn-0.3.tar.gz", hash = "sha256:{SHA}" }}

[package.optional-dependencies]
standard = [{{ name = "httptools" }}]
other = [{{ name = "sphinx" }}]

[[package]]
name = "httptools"
version = "0.6"
source = {{ registry = "https://p.example.org/simple" }}

[[package]]
name = "sphinx"
version = "8"
source = {{ registry = "https://p.example.org/simple" }}

[[package]]
name = "bee"
version = "1.0"
source = {{ git = "https://g.example.org/bee.git?rev=main#{COMMIT}" }}
"""


def test_a_uv_lock(tmp_path: Path) -> None:
    found = read(tmp_path / "uv.lock", UV_LOCK, python="3.11")
    assert (found.kind, found.spec.conda) == (FileKind.UV_LOCK, ("python=3.11", "pip"))
    assert found.spec.pip == (
        "--extra-index-url https://p.example.org/simple",
        "--extra-index-url https://i.example.org/simple",
        "numpy==2.3",
        "uvicorn==0.3",
        "httptools==0.6",
        f"bee @ git+https://g.example.org/bee.git@{COMMIT}",
    )
    assert found.lock is not None
    numpy = found.lock.candidates[0]
    assert numpy["wheels"][0]["hashes"] == {"sha256": SHA}
    assert found.lock.candidates[3]["vcs"]["commit-id"] == COMMIT
    notes = "\n".join(found.notes)
    assert "app itself, from ." in notes
    assert "app [optional-dependencies] docs: sphinx" in notes
    older = read(tmp_path / "uv.lock", UV_LOCK, name="m")
    assert older.spec.conda[0] == "python=3.10"
    assert "numpy==1.26" in older.spec.pip
    (tmp_path / ".python-version").write_text("3.12.1\n")
    assert read(tmp_path / "uv.lock", UV_LOCK, name="o").spec.conda[0] == "python=3.12"


@pytest.mark.parametrize(
    ("requires", "python", "line"),
    [
        (">=3.9", None, "python=3.10"),
        (">=3.9", "3.12.4", "python=3.12.4"),
        (">=3.11,<3.13", None, "python=3.11"),
        ("<=3.11", None, "python=3.10"),
        (">=3.11.4,<3.11.9", None, "python 3.11.*,<3.11.9,>=3.11.4"),
        ("==3.12.*", None, "python=3.12"),
        ("==3.12.3", None, "python 3.12.*,==3.12.3"),
        (">=3.6,<3.8", None, "python=3.7"),
        (">=3.12,!=3.12.1", "3.12", "python 3.12.*,!=3.12.1,>=3.12"),
    ],
)
def test_the_python_of_a_lock_keeps_its_bounds(
    tmp_path: Path, requires: str, python: str | None, line: str
) -> None:
    text = UV_LOCK.replace(">=3.9", requires, 1)
    options = {"python": python} if python else {}
    found = read(tmp_path / "uv.lock", text, **options)
    assert found.spec.conda[0] == line
    assert f"using {line} on" in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("requires", "python", "words"),
    [
        (">=3.12", "3.10", "requires python >=3.12, and 3.10 does not fit"),
        ("<3.12.4,>=3.11", "3.12.4", "3.12.4 does not fit"),
        (">=4", None, "no known version fits"),
    ],
)
def test_a_python_that_a_lock_is_not_for(
    tmp_path: Path, requires: str, python: str | None, words: str
) -> None:
    options = {"python": python} if python else {}
    with pytest.raises(SpecError) as caught:
        read(tmp_path / "uv.lock", UV_LOCK.replace(">=3.9", requires, 1), **options)
    assert words in caught.value.message
    assert "--python" in (caught.value.hint or "")


PYLOCK = f"""\
lock-version = "1.0"
requires-python = "==3.11.*"
created-by = "a-tool"
extras = ["docs"]

[[packages]]
name = "Rich"
version = "14.0"
index = "https://i.example.org/simple"
wheels = [
    {{ url = "https://f.example.org/rich-14.0-py3-none-any.whl", hashes = {{ sha256 = "{SHA}" }} }},
]

[[packages]]
name = "sphinx"
version = "8"
marker = "'docs' in extras"

[[packages]]
name = "pywin"
version = "1"
marker = "sys_platform == 'win32'"

[[packages]]
name = "bee"
vcs = {{ type = "git", url = "https://g.example.org/bee", commit-id = "{COMMIT}" }}

[[packages]]
name = "cee"
archive = {{ url = "https://f.example.org/cee-1.0.zip", hashes = {{ sha256 = "{SHA}" }} }}
"""


def test_a_pylock(tmp_path: Path) -> None:
    found = read(tmp_path / "pylock.toml", PYLOCK)
    assert (found.kind, found.spec.conda) == (FileKind.PYLOCK, ("python=3.11", "pip"))
    assert found.spec.pip == (
        "--extra-index-url https://i.example.org/simple",
        "rich==14.0",
        f"bee @ git+https://g.example.org/bee@{COMMIT}",
        "cee @ https://f.example.org/cee-1.0.zip",
    )
    assert any("extras docs" in note for note in found.notes)


def test_the_default_groups_of_a_pylock_are_installed(tmp_path: Path) -> None:
    entry = '[[packages]]\nname = "{}"\nversion = "1"\nmarker = "\'{}\' in {}"\n'
    text = "".join(
        (
            'lock-version = "1.0"\ncreated-by = "pdm"\nextras = ["more"]\n',
            'dependency-groups = ["default", "dev"]\ndefault-groups = ["default"]\n',
            entry.format("own", "default", "dependency_groups"),
            entry.format("tests", "dev", "dependency_groups"),
            entry.format("extra", "more", "extras"),
        )
    )
    found = read(tmp_path / "pylock.toml", text)
    assert found.spec.pip == ("own==1",)
    assert "not carried over: extras more: none is selected" in found.notes
    assert "not carried over: dependency-groups dev: none is selected" in found.notes


def test_an_explicit_list_is_a_lock(tmp_path: Path) -> None:
    text = (
        f"# platform: linux-64\n@EXPLICIT\n{PUBLIC}/linux-64/xz-5.6-h1_0.conda#sha256:{SHA}\n"
        f"{PUBLIC}/noarch/tz-1-0.tar.bz2#{MD5}\nfile:///srv/own-1-0.conda\n"
        f"# pip rich @ https://f.example.org/rich-14.0-py3-none-any.whl --hash=sha256:{SHA}\n"
    )
    locked = packages(read(tmp_path / "explicit.txt", text))
    assert locked["linux-64", "xz"].sha256 == SHA
    assert locked["linux-64", "tz"].md5 == MD5
    assert locked["linux-64", "own"].url == "file:///srv/own-1-0.conda"
    assert (locked["linux-64", "rich"].version, locked["linux-64", "rich"].sha256) == ("14.0", SHA)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("conda-lock.yml", CONDA_LOCK.replace("version: 1\n", "version: 9\n"), "format 9"),
        ("conda-lock.yml", CONDA_LOCK.replace("name: tz, ", ""), "it has no `name`"),
        ("pixi.lock", PIXI_LOCK.replace("version: 6", "version: 99"), "format 99"),
        ("pixi.lock", PIXI_LOCK.replace(f"#{COMMIT}", "#main"), "names no commit"),
        ("uv.lock", UV_LOCK.replace("version = 1\n", "version = 9\n", 1), "format 9"),
        (
            "uv.lock",
            UV_LOCK.replace('name = "httptools"\nversion', 'name = "x"\nversion'),
            "httptools",
        ),
        ("pylock.toml", PYLOCK.replace('"1.0"', '"2.0"', 1), "format 2.0"),
        ("poetry.lock", '[[package]]\nname="a"\nversion="1"\n', "a lock of cargo"),
    ],
)
def test_locks_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path / name, text)
    assert words in caught.value.message
    assert name in caught.value.message
    assert caught.value.hint


def test_the_forms_of_git_urls() -> None:
    place = "https://g.example.org/a/b"
    assert git_url(f"{place}?rev=x#{COMMIT}") == (f"git+{place}@{COMMIT}", COMMIT)
    assert git_url(f"{place}@{COMMIT}") == (f"git+{place}@{COMMIT}", COMMIT)
    assert git_url(f"https://u:secret@g.example.org/b#{COMMIT}")[0].count("secret") == 0
