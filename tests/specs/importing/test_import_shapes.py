"""Shapes of files that people have and tools write: each is read as its own tool reads it."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import pytest

from envferry.errors import SpecError
from envferry.specs.importing.conversion import Imported, ImportOptions, import_spec
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = "https://conda.anaconda.org/conda-forge"


def imported(path: Path, text: str | bytes, name: str | None = None) -> Imported:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    specs = path.parent / "specs"
    specs.mkdir(exist_ok=True)
    found = import_spec(path, specs, ImportOptions(name=name))
    found.spec.path.write_text(found.text)
    return found


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_texts_with_a_byte_order_mark(tmp_path: Path, mark: bytes, encoding: str) -> None:
    data = mark + "rich==14.0  # warum nicht: öäü\r\nclick\r\n".encode(encoding)
    assert imported(tmp_path / "requirements.txt", data, "n").spec.pip == ("rich==14.0", "click")


@pytest.mark.parametrize("data", [codecs.BOM_UTF16_LE + b"a", codecs.BOM_UTF8 + b"a\xff"])
def test_texts_that_break_off(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "requirements.txt", data)
    assert "requirements.txt" in caught.value.message
    assert caught.value.hint == "save the file as UTF-8"


MANIFEST = """\
[workspace]
channels = ['c', {channel = 'd', exclude-newer = '7d'}]
platforms = ['linux-64']
[workspace.dependencies]
numpy = '2.*'
scipy = '1.*'
[feature.test.dependencies]
pytest = '*'
numpy = {workspace = true}
[environments]
test = {features = ['test'], solve-group = 'g', dependencies = {own = '1.*'}}
"""


def test_an_environment_of_a_manifest_is_chosen_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "pixi.toml", MANIFEST)
    assert "the default environment of " in caught.value.message
    assert caught.value.hint == "choose one with `--name`: test"
    found = imported(tmp_path / "pixi.toml", MANIFEST, "test")
    assert found.spec.name == "test"
    assert {*found.spec.conda} == {"own 1.*", "pytest", "numpy 2.*"}
    said = "\n".join(found.notes)
    for words in ("scipy", "solve-group] 'g'", "exclude-newer = '7d' of d"):
        assert words in said


def test_a_name_that_no_environment_has_is_the_name_of_the_default_one(tmp_path: Path) -> None:
    text = MANIFEST + "[dependencies]\nzlib = '*'\n"
    found = imported(tmp_path / "pixi.toml", text, "mine")
    assert (found.spec.name, found.spec.conda) == ("mine", ("zlib",))
    assert any(note.endswith("only the default environment is read") for note in found.notes)


def test_pixi_in_a_pyproject_has_the_python_of_the_project(tmp_path: Path) -> None:
    text = (
        "[project]\nname='x'\nrequires-python='>=3.11'\ndependencies=['rich']\n"
        "[project.optional-dependencies]\ndocs=['mkdocs']\n"
        "[tool.pixi.workspace]\nchannels=['c']\nplatforms=['linux-64']\n"
    )
    found = imported(tmp_path / "pyproject.toml", text, "x")
    assert found.spec.conda == ("python >=3.11", "pip")
    assert "not carried over: [project.optional-dependencies] docs: mkdocs" in found.notes
    pinned = imported(
        tmp_path / "pyproject.toml", f"{text}[tool.pixi.dependencies]\npython='3.12.*'\n", "x"
    )
    assert pinned.spec.conda == ("python 3.12.*", "pip")


def test_what_other_tools_have_in_a_pyproject_is_named(tmp_path: Path) -> None:
    text = (
        "[project]\nname='x'\ndependencies=['rich', 'bee', 'cee']\ndependecies=['oops']\n"
        "dynamic=['version', 'dependencies']\n"
        "[[tool.uv.index]]\nname='flat'\nurl='https://i.example.org/wheels'\nformat='flat'\n"
        "[tool.uv.sources]\nbee={url='https://h.example.org/bee.zip', subdirectory='py'}\n"
        "cee={path='cee', editable=true}\n[tool.uv]\nbuild-constraint-dependencies=['older<1']\n"
        "link-mode='copy'\n[tool.poetry.group.dev.dependencies]\nlinter='^1'\n"
        "[tool.hatch.envs.test]\ndependencies=['tester']\n[tool.ruff]\nline-length=9\n"
    )
    found = imported(tmp_path / "pyproject.toml", text, "x")
    assert found.spec.pip == (
        "--find-links https://i.example.org/wheels",
        "rich",
        "bee @ https://h.example.org/bee.zip#subdirectory=py",
        "../cee",
    )
    said = "\n".join(found.notes)
    for words in ("oops", "editable = True", "older<1", "linter", "tester", "dynamic"):
        assert words in said
    assert "ruff" not in said
    assert "link-mode" not in said


def test_an_empty_value_of_a_lock_is_none(tmp_path: Path) -> None:
    text = (
        "version: 1\nmetadata: {channels: [{url: conda-forge, used_env_vars: []}]}\npackage:\n"
        f"- {{name: xz, version: '1.0', manager: conda, platform: osx-64, source: null, url: "
        f"'{PUBLIC}/osx-64/xz-1.0-b_0.conda', hash: {{md5: null, sha256: {'ab' * 32}}}}}\n"
        f"- {{name: xz, version: '1.0', manager: conda, platform: linux-64, source: ~, url: "
        f"'{PUBLIC}/linux-64/xz-1.0-a_0.conda', hash: {{md5: {'cd' * 16}}}, category: null}}\n"
    )
    found = imported(tmp_path / "conda-lock.yml", text, "n")
    assert found.lock is not None
    assert [item.md5 for item in found.lock.packages] == [None, "cd" * 16]
    # osx-arm64, which the lock knows nothing of, gets neither of the two.
    by_platform = {
        name: read_spec(found.spec.path, platform=name).conda for name in ("linux-64", "osx-64")
    }
    assert by_platform == {"linux-64": ("xz=1.0=a_0",), "osx-64": ("xz=1.0=b_0",)}
    assert "[not" not in found.text


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "pip install torch --index-url https://i.example.org/whl/cu118\n",
            ("torch", "--index-url https://i.example.org/whl/cu118"),
        ),
        (
            "$ python3 -m pip install -U 'rich>=13' \\\n  -r more.txt\n# then\n"
            "uv pip install click -e .\n",
            ("rich>=13", "six", "click", "-e .."),
        ),
        ("!pip3 install git+https://g.example.org/bee\n", ("git+https://g.example.org/bee",)),
    ],
)
def test_commands_of_pip(tmp_path: Path, text: str, lines: tuple[str, ...]) -> None:
    (tmp_path / "more.txt").write_text("six\n")
    assert imported(tmp_path / "requirements.txt", text, "n").spec.pip == lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pip install torch --no-deps\n", "`--no-deps` is not a valid option"),
        ("pip install 'torch\n", "is not a valid requirement"),
        ("torch --index-url https://i.example.org\n", "but stands on a line of its own"),
        ("pip install torch\nconda install x\n", "`pip install torch` is not a valid requirement"),
    ],
)
def test_commands_that_are_more_than_a_list(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "requirements.txt", text, "n")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "conda", "pip"),
    [
        ("python\nnumpy>=2\n", ("python", "numpy>=2"), ()),
        ("python>=3.10\npytest !=8.1\n", ("python>=3.10", "pytest !=8.1"), ()),
        ("python-dateutil\n", ("python", "pip"), ("python-dateutil",)),
        ("python\nrich[x]\nbee @ https://h.example.org/b.zip\n", ("python", "pip"), None),
    ],
)
def test_a_list_that_asks_for_python_is_condas(
    tmp_path: Path, text: str, conda: tuple[str, ...], pip: tuple[str, ...] | None
) -> None:
    found = imported(tmp_path / "requirements.txt", text, "n").spec
    assert found.conda == conda
    assert found.pip == (tuple(text.split("\n")[:-1]) if pip is None else pip)


OTHERS = [
    ("Pipfile", "[packages]\nrich = '*'\n[requires]\npython_version = '3.11'\n", "pipenv"),
    ("Pipfile.lock", '{"_meta": {}, "default": {"rich": {"version": "==1"}}}', "pipenv"),
    (
        "poetry.lock",
        "[[package]]\nname = 'a'\nversion = '1'\n[metadata]\nlock-version = '2.1'\n",
        "poetry export",
    ),
    (
        "pdm.lock",
        "[metadata]\nlock_version = '4.5.0'\n[[package]]\nname = 'a'\nversion = '1'\n",
        "pdm export -f pylock",
    ),
    ("Cargo.lock", "version = 3\n[[package]]\nname = 'a'\nversion = '1'\n", "pixi.toml"),
    ("package.json", '{"lockfileVersion": 3, "packages": {}}', "environment.yml"),
]


@pytest.mark.parametrize(("name", "text", "way_out"), OTHERS)
def test_the_files_of_other_tools_get_a_way_out(
    tmp_path: Path, name: str, text: str, way_out: str
) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / name, text)
    assert name in caught.value.message
    assert way_out in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "{name: n, channels: [c], dependencies: [python=3.11, {pip: [rich]}]}\n",
        '{"name": "n", "channels": ["c"], "dependencies": ["python=3.11", {"pip": ["rich"]}]}',
        '"name": n\n"channels": [c]\n"dependencies": ["python=3.11", {"pip": [rich]}]\n',
    ],
)
def test_environments_in_every_style_of_yaml(tmp_path: Path, text: str) -> None:
    spec = imported(tmp_path / "environment.yml", text).spec
    assert (spec.conda, spec.pip) == (("python=3.11",), ("rich",))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("- python: 3.10", "keys `python`", "write it as `- python=3.10`"),
        ("- {pip: rich}", "found `rich`", "write each below `pip:` as `- REQUIREMENT`"),
        ("- {npm: [a]}", "keys `npm`", "take `npm:` out"),
    ],
)
def test_mappings_that_are_no_dependency(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "environment.yml", f"channels: [c]\ndependencies:\n  {text}\n")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        r"C:\wheels\a-1-py3-none-any.whl",
        r".\a-1-py3-none-any.whl",
        r"..\wheels\a-1-py3-none-any.whl",
        "a @ file:///C:/wheels/a-1-py3-none-any.whl",
        "C:/wheels/a-1-py3-none-any.whl",
    ],
)
def test_paths_of_windows_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(SpecError, match="begins a path of Windows"):
        imported(tmp_path / "requirements.txt", f"rich\n{line}\n")


def test_brackets_that_hold_no_keys_are_no_conda_specs(tmp_path: Path) -> None:
    text = "build-essential [platform:dpkg]\nlibopenssl-devel [platform:suse !platform:rpm]\n"
    with pytest.raises(SpecError, match="neither an environment file nor a list"):
        imported(tmp_path / "bindep.txt", text)
    spec = imported(tmp_path / "list.txt", "python\na[version='>=1,<2', build=0]\n", "n").spec
    assert spec.conda[1] == "a[version='>=1,<2', build=0]"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.txt", "-i https://me:pw@h.example/simple\nrich\n"),
        ("requirements.txt", "rich @ git+https://token@h.example/rich.git@v1\n"),
        ("environment.yml", "channels: [c]\ndependencies: [{pip: ['-i https://a:b@h.example']}]\n"),
        ("environment.yml", "channels: [c, 'https://me:pw@h.example/c']\ndependencies: [a]\n"),
        ("environment.yml", "channels: [c]\ndependencies:\n- https://a:b@h.example/c::a=1\n"),
        (
            "environment.yml",
            "channels: [ours]\ndependencies: [a]\n"
            "envferry: {channels: {ours: 'https://a:b@h.example/c'}}\n",
        ),
        (
            "pixi.toml",
            "[project]\nname = 'n'\nchannels = ['https://me:pw@h.example/c']\n"
            "platforms = ['linux-64']\n[dependencies]\na = '*'\n",
        ),
    ],
)
def test_logins_are_left_out_and_named(tmp_path: Path, name: str, text: str) -> None:
    found = imported(tmp_path / name, text, "n")
    assert "the login for h.example is left out: put it into ~/.netrc" in found.notes
    assert not any(secret in found.text for secret in ("pw", "token", "a:b", "tk-1"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "@EXPLICIT\nhttps://h.example/t/tk-1/c/noarch/a-1-0.conda#" + "a" * 32),
        ("environment.yml", "channels:\n- https://h.example/t/tk-1/c\ndependencies: [a]\n"),
        ("environment.yml", "channels: [c]\ndependencies: ['https://h.example/t/tk-1/c::a']\n"),
    ],
)
def test_tokens_of_channels_are_left_out_and_named(tmp_path: Path, name: str, text: str) -> None:
    found = imported(tmp_path / name, text, "n")
    (note,) = (note for note in found.notes if "h.example" in note)
    assert note.startswith("the token for h.example is left out: `pixi auth login h.example ")
    assert "tk-1" not in found.text


def test_what_stands_for_a_login_is_kept(tmp_path: Path) -> None:
    url = "https://${USER}:${PASSWORD}@h.example/c"
    text = f"channels: ['{url}']\ndependencies: [a=1=0]\n"
    (tmp_path / "environment.yml").write_text(text)
    options = ImportOptions(name="n", relax="build")
    found = import_spec(tmp_path / "environment.yml", tmp_path, options)
    assert found.spec.channels == (url,)
    assert found.spec.conda == ("a=1",)
    assert not any("h.example" in note for note in found.notes)


def test_logins_that_are_none_are_kept(tmp_path: Path) -> None:
    found = imported(tmp_path / "requirements.txt", "a @ git+ssh://git@h.example/a.git@v1\n", "n")
    assert not any("login" in note for note in found.notes)


def test_pins_with_many_hashes_are_no_small_file(tmp_path: Path) -> None:
    hashes = "".join(f" --hash=sha256:{number:064x}" for number in range(40))
    lines = [f"package{number}==1.0{hashes}" for number in range(600)]
    found = imported(tmp_path / "requirements.txt", "\n".join(lines), "n")
    assert len(read_spec(found.spec.path).pip) == 600
    with pytest.raises(SpecError, match="larger than 8 MB"):
        imported(
            tmp_path / "requirements.txt",
            "\n".join(f"x{copy}{line}" for copy in range(6) for line in lines),
        )


@pytest.mark.parametrize("tool", ["", "[tool.pixi.workspace]\nchannels = ['c']\n"])
def test_paths_from_the_folder_of_a_project(tmp_path: Path, tool: str) -> None:
    """PDM's form, and hatch's."""
    digest = "a" * 64
    lines = {
        "one @ file:///${PROJECT_ROOT}/libs/one": "../libs/one",
        "two[x] @ {root:uri}/two ; python_version > '3'": '../two[x] ; python_version > "3"',
        "up @ {root:parent:uri}/up": "../../up",
        "all @ file://{root}": "..",
        "file @ ${PROJECT_ROOT}/f-1-py3-none-any.whl": "../f-1-py3-none-any.whl",
        f"sum @ {{root:uri}}/s-1.zip#sha256={digest}": f"../s-1.zip --hash=sha256:{digest}",
        "inner @ {root:uri}/mono#subdirectory=py/inner": "../mono/py/inner",
        "gap @ {root:uri}/a%20b": f"gap @ {(tmp_path / 'a b').as_uri()}",
        "far @ https://h.example.org/{root}/far-1.zip": "far @ https://h.example.org/{root}/far-1.zip",
        "rooted @ {rooted:uri}/x": "rooted @ {rooted:uri}/x",
    }
    text = f"[project]\nname = 'n'\nrequires-python = '>=3.11'\ndependencies = {[*lines]}\n{tool}"
    found = imported(tmp_path / "pyproject.toml", text)
    assert found.spec.pip == tuple(lines.values())
    assert found.spec.pip == read_spec(found.spec.path).pip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("packages = 3", "is damaged"),
        ("default-groups = 'dev'", "`default-groups` is not an array of names"),
        ("extras = [1]", "`extras` is not an array of names"),
        ("dependency-groups = {a = 1}", "`dependency-groups` is not an array of names"),
    ],
)
def test_a_pylock_without_tables_is_no_list_of_conda_packages(
    tmp_path: Path, line: str, said: str
) -> None:
    text = "lock-version = '1.0'\ncreated-by = 'x'\n"
    empty = imported(tmp_path / "pylock.toml", f"{text}packages = []\n", "n")
    assert empty.spec.conda == ("python=3.10", "pip")
    with pytest.raises(SpecError, match=said):
        imported(tmp_path / "pylock.toml", f"{text}{line}\n", "n")


def test_lists_of_conda_packages_that_toml_could_be(tmp_path: Path) -> None:
    assert imported(tmp_path / "a.txt", "numpy = 2.1\npython = 3.11\n").spec.conda == (
        "numpy = 2.1",
        "python = 3.11",
    )
    with pytest.raises(SpecError, match="is TOML with neither"):
        imported(tmp_path / "b.txt", "numpy = '2.1'\npython = '>=3.11'\n")


def test_what_a_project_repeats_of_conda_is_not_asked_of_an_index(tmp_path: Path) -> None:
    """By pixi's rule; what the project says beyond conda's line stays."""
    text = (
        "[project]\nname='p'\nversion='1'\n"
        "dependencies=['numpy!=1.24', 'scipy', 'dask[array]>=2025', 'pandas>=2', 'rich; "
        'sys_platform == "linux"\']\n'
        "[tool.pixi.workspace]\nchannels=['c']\nplatforms=['linux-64']\n[tool.pixi.dependencies]\n"
        "python='3.12.*'\nnumpy='!=1.24'\nscipy='>=1.6'\ndask='>=2025'\npandas='*'\nrich='*'\n"
    )
    found = imported(tmp_path / "pyproject.toml", text)
    assert found.spec.pip == (*("dask[array]>=2025", "pandas>=2", 'rich; sys_platform == "linux"'),)
    assert "[project] dependencies that conda has already: numpy!=1.24, scipy" in found.notes


def test_indexes_of_a_project_that_are_folders(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text(
        "[project]\nname='app'\ndependencies=['loc']\n"
        "[[tool.uv.index]]\nname='flat'\nurl='./flat'\nformat='flat'\n"
        "[[tool.uv.index]]\nurl='simple'\n"
    )
    options = ImportOptions(name="x", channels=("conda-forge",))
    spec = import_spec(tmp_path / "app" / "pyproject.toml", tmp_path / "specs", options).spec
    assert spec.pip == (
        "--find-links ../app/flat",
        f"--extra-index-url {(tmp_path / 'app' / 'simple').as_uri()}",
        "loc",
    )
