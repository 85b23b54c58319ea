"""Importing: every kind of list that people have becomes a spec, whatever its name."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envferry.errors import NotFound, PipelineError, SpecError, UsageError
from envferry.specs.drafts import SpecDraft, quoted, relaxed, render_draft
from envferry.specs.importing.conversion import Imported, ImportOptions, import_spec
from envferry.specs.importing.file_kinds import FileKind
from envferry.specs.reading import read_spec
from envferry.specs.syntax.yaml_text import parse_yaml
from tests.support.cli_runner import CliRunner

USERS_FILE = Path(__file__).parents[3] / "specs" / "transformer_env.yml"


def imported(path: Path, text: str, options: ImportOptions | None = None) -> Imported:
    """Write a file, import it, and check that importing the spec again changes nothing."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    specs = path.parent / "specs"
    specs.mkdir(exist_ok=True)
    found = import_spec(path, specs, options or ImportOptions())
    found.spec.path.write_text(found.text)
    read_spec(found.spec.path)
    again = import_spec(found.spec.path, specs, ImportOptions())
    assert again.text == found.text
    assert again.kind is FileKind.ENVIRONMENT
    return found


def test_the_users_file_under_a_name_that_misleads(tmp_path: Path) -> None:
    found = imported(tmp_path / "requirements_qwen25.txt", USERS_FILE.read_text())
    assert found.kind is FileKind.ENVIRONMENT
    assert found.spec.name == "transformer_env"
    assert (len(found.spec.conda), len(found.spec.pip)) == (32, 172)
    assert "prefix:" not in found.text
    assert found.notes[0] == (
        "requirements_qwen25.txt: this is a conda environment file, not a pip requirements file"
    )


def test_relaxing_an_exported_environment(tmp_path: Path) -> None:
    text = USERS_FILE.read_text()
    pins = {
        level: imported(tmp_path / level / "e.yml", text, ImportOptions(relax=level)).spec.conda
        for level in ("build", "patch", "all")
    }
    assert [pins[level][20] for level in pins] == ["python=3.10.19", "python=3.10.*", "python"]


def test_comments_selectors_and_our_own_key_survive(tmp_path: Path) -> None:
    text = (
        "# why\nname: n\nchannels: [c]\nmystery: {a: 1,\n  b: 2}\ndependencies:\n"
        "  - a=1  # [linux64]\n  - b  # because\nprefix: /x\nenvferry: {version: '2'}\n"
    )
    found = imported(tmp_path / "environment.yml", text)
    kept = text.replace("mystery: {a: 1,\n  b: 2}\n", "").replace("prefix: /x\n", "")
    marked = kept.replace("name: n", "# Not carried over: mystery: a, b\nname: n")
    assert found.text == marked
    assert found.notes == ("`mystery:` is left out", "`prefix:` (/x) is left out")


def test_the_base_environment_gets_another_name(tmp_path: Path) -> None:
    found = imported(tmp_path / "torch.yml", "name: base\ndependencies: [a]\n")
    assert found.text == "name: torch\nchannels: [conda-forge]\ndependencies: [a]\n"
    assert "the name `base` cannot be used: it is now `torch`" in found.notes


REQUIREMENTS = """\
--extra-index-url https://user:secret@download.example.org/whl/cu118
-r base.txt  # the rest
-c limits.txt
torch==2.1.0+cu118 ; python_version < "3.12"  # why
numpy==1.26.4 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
git+https://git.example.org/a/bee.git@main#egg=bee&subdirectory=py
./wheels/x-1.0-py3-none-any.whl
-e .
uvicorn[standard]>=0.2
"""


def test_a_requirements_file_with_everything(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("six\n-r inner/more.txt\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/more.txt").write_text("./y.whl\n")
    (tmp_path / "limits.txt").write_text("six<2\n")
    found = imported(tmp_path / "train.txt", REQUIREMENTS, ImportOptions(python="3.11"))
    assert found.kind is FileKind.REQUIREMENTS
    assert found.spec.name == "train"
    assert found.spec.conda == ("python=3.11", "pip")
    assert found.spec.pip == (
        "--extra-index-url https://download.example.org/whl/cu118",
        "six",
        "../inner/y.whl",
        "-c ../limits.txt",
        'torch==2.1.0+cu118 ; python_version < "3.12"',
        "numpy==1.26.4 --hash=sha256:aa --hash=sha256:bb",
        "bee @ git+https://git.example.org/a/bee.git@main#subdirectory=py",
        "../wheels/x-1.0-py3-none-any.whl",
        "-e ..",
        "uvicorn[standard]>=0.2",
    )


def test_includes_that_go_round_or_nowhere(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="includes itself"):
        imported(tmp_path / "a.txt", "six\n-r a.txt\n")
    with pytest.raises(SpecError, match=r"a.txt:2: `-r b.txt` names .*b.txt, which does not exist"):
        imported(tmp_path / "a.txt", "six\n-r b.txt\n")


def test_an_explicit_list(tmp_path: Path) -> None:
    text = (
        "# platform: linux-64\n@EXPLICIT\n"
        "https://conda.anaconda.org/conda-forge/linux-64/xz-5.6.4-h1_0.conda#abc\n"
        "https://u:secret@mirror.example.org/x/y/linux-64/a_b-c-1!2.0-py_0.tar.bz2\n"
        "https://repo.anaconda.com/pkgs/main/noarch/tzdata-2025a-0.conda\n"
        "# pip rich @ https://h.example.org/rich-14.0.0-py3-none-any.whl --hash=sha256:00\n"
    )
    spec = imported(tmp_path / "explicit-x.txt", text).spec
    assert spec.channels == ("conda-forge", "https://mirror.example.org/x/y", "defaults")
    assert spec.conda == ("xz=5.6.4=h1_0", "a_b-c=1!2.0=py_0", "tzdata=2025a=0", "pip")
    assert spec.pip == ("rich @ https://h.example.org/rich-14.0.0-py3-none-any.whl",)
    assert spec.options.platforms == ("linux-64",)
    own = imported(tmp_path / "own.txt", "@EXPLICIT\nfile:///srv/pkgs/own-1-0.conda\n").spec
    # Not `own=1=0`, which conda-forge may have from anybody.
    assert own.conda == ("file:///srv/pkgs/own-1-0.conda",)
    with pytest.raises(SpecError, match=r"x.txt:2: `nonsense` is not a conda package URL"):
        imported(tmp_path / "x.txt", "@EXPLICIT\nnonsense\n")


def test_an_exported_list(tmp_path: Path) -> None:
    found = imported(tmp_path / "l.txt", "# platform: linux-64\nxz=5.6.4=h1_0\nrich=14.0=pypi_0\n")
    assert found.kind is FileKind.CONDA_LIST
    assert (found.spec.conda, found.spec.pip) == (("xz=5.6.4=h1_0", "pip"), ("rich==14.0",))


PIXI = """\
[workspace]
name = "p"
channels = ["conda-forge", {channel = "nvidia", priority = 1}]
platforms = ["linux-64", "win-64"]
[dependencies]
python = "3.11.*"
numpy = ">=1.2, <2"
torch = {version = "==2.1", build = "py*cuda*", channel = "nvidia"}
[pypi-dependencies]
flask = "*"
bee = {git = "https://git.example.org/bee.git", rev = "abc"}
why = {version = ">=1", extras = ["a"], index = "https://index.example.org/simple"}
app = {path = "app", editable = true}
[target.linux-64.dependencies]
mkl = "*"
[system-requirements]
cuda = "12"
libc = {family = "glibc", version = "2.34"}
[tasks]
go = "true"
"""


@pytest.mark.parametrize("name", ["pixi.toml", "anything.txt"])
def test_a_pixi_manifest(tmp_path: Path, name: str) -> None:
    found = imported(tmp_path / name, PIXI, ImportOptions(name="p"))
    assert found.kind is FileKind.PIXI
    spec = read_spec(found.spec.path, platform="linux-64")
    assert spec.channels == ("nvidia", "conda-forge")
    assert spec.conda == (
        "python 3.11.*",
        "numpy >=1.2,<2",
        "nvidia::torch=2.1=py*cuda*",
        "mkl",
        "pip",
    )
    assert spec.pip == (
        "--extra-index-url https://index.example.org/simple",
        "flask",
        "bee @ git+https://git.example.org/bee.git@abc",
        "why[a]>=1",
        "../app",
    )
    assert (spec.options.system.cuda, spec.options.system.glibc) == ("12", "2.34")
    assert "mkl" not in read_spec(found.spec.path, platform="linux-aarch64").conda
    assert any("win-64" in note for note in found.notes)
    assert any("`tasks`" in note for note in found.notes)


def test_a_pyproject(tmp_path: Path) -> None:
    text = '[project]\nname="z"\nrequires-python=">=3.10,<3.13"\ndependencies=["rich>=13"]\n'
    found = imported(tmp_path / "app/pyproject.toml", text)
    assert (found.kind, found.spec.name) == (FileKind.PYPROJECT, "app")
    assert found.spec.conda == ("python <3.13,>=3.10", "pip")
    assert found.spec.pip == ("rich>=13",)


def write_prefix(prefix: Path) -> Path:
    """Write what conda and pip leave in an environment."""
    packages = prefix / "lib/python3.10/site-packages"
    meta = prefix / "conda-meta"
    meta.mkdir(parents=True)
    url = "https://conda.anaconda.org/conda-forge/linux-64/python-3.10.13-h1_0.conda"
    record = {"name": "python", "version": "3.10.13", "build": "h1_0", "url": url, "files": []}
    (meta / "python.json").write_text(json.dumps(record))
    owned = "lib/python3.10/site-packages/numpy-2.0.dist-info/METADATA"
    # As conda wrote it in 2015, when it did not know the URL any more.
    numpy = {"name": "numpy", "version": "2.0", "build": "0", "files": [owned], "url": None}
    (meta / "numpy.json").write_text(json.dumps(numpy))
    origins = {
        "numpy": None,
        "rich": None,
        "bee": {"url": "https://g.example.org/bee", "vcs_info": {"vcs": "git", "commit_id": "c0"}},
        "app": {"url": "file:///home/me/app", "dir_info": {"editable": True}},
    }
    for name, origin in origins.items():
        info = packages / f"{name}-2.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n\nHi\n")
        if origin:
            (info / "direct_url.json").write_text(json.dumps(origin))
    return prefix


def test_the_link_that_condas_python_ships_is_not_followed(tmp_path: Path) -> None:
    prefix = write_prefix(tmp_path / "torch")
    expected = import_spec(prefix, tmp_path, ImportOptions()).spec
    (prefix / "lib/python3.1").symlink_to("python3.10")
    assert import_spec(prefix, tmp_path, ImportOptions()).spec == expected
    # Without conda's record of it, the version of python is that of its folder.
    (prefix / "conda-meta/python.json").unlink()
    found = import_spec(prefix, tmp_path, ImportOptions())
    assert "python=3.10" in found.spec.conda


def test_an_installed_environment_has_the_name_that_people_give_it(tmp_path: Path) -> None:
    """What hosts see is a link to a tree that is named by its id."""
    write_prefix(tmp_path / ".envferry/torch/febba9598c9c")
    (tmp_path / "torch").symlink_to(".envferry/torch/febba9598c9c")
    assert import_spec(tmp_path / "torch", tmp_path, ImportOptions()).spec.name == "torch"


def test_a_prefix_without_conda(tmp_path: Path) -> None:
    found = import_spec(write_prefix(tmp_path / "torch"), tmp_path, ImportOptions())
    assert (found.kind, found.spec.name) == (FileKind.PREFIX, "torch")
    assert found.spec.channels == ("conda-forge",)
    assert found.spec.conda == ("numpy=2.0=0", "python=3.10.13=h1_0", "pip")
    assert found.spec.pip == (
        "app @ file:///home/me/app",
        "bee @ git+https://g.example.org/bee@c0",
        "rich==2.0",
    )
    shutil.rmtree(tmp_path / "torch/lib")
    (tmp_path / "torch/conda-meta/numpy.json").write_text("{")
    with pytest.raises(SpecError, match=r"numpy.json is damaged"):
        import_spec(tmp_path / "torch", tmp_path, ImportOptions())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("dear reader,\nhow are you\n", "x.txt:1: this is neither an environment file nor a list"),
        ("version: 1\nmetadata: {}\npackage: []\n", "contains no packages"),
        ("[tool.black]\nx = 1\n", "lists nothing"),
        ("[project]\ndependencies = 3\n", "`dependencies` is not a list"),
        ("[workspace]\nchannels = []\n[dependencies]\n[target]\nlinux-64=3\n", "is not a table"),
        ("dependencies: [a\nname: x\n", "x.txt:"),
        ("\0", "binary"),
    ],
)
def test_what_is_nothing_known(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "x.txt", text)
    assert expected in caught.value.message
    assert caught.value.hint


def test_nothing_there_and_bad_names(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        import_spec(tmp_path / "no.txt", tmp_path, ImportOptions())
    with pytest.raises(SpecError, match="is a folder without"):
        import_spec(tmp_path, tmp_path, ImportOptions())
    with pytest.raises(UsageError, match="conda's own installation"):
        imported(tmp_path / "a.txt", "six\n", ImportOptions(name="base"))


WORDS = st.sampled_from(
    [
        *("dependencies:", "- pip:", "  ", "\n", "- a", "envferry:", "name: ", "@EXPLICIT\n"),
        *("[project]\n", "[workspace]\n", "channels=['c']\n", "[dependencies]\n", "a=1=0\n"),
        *("numpy==1", "-r x", "git+https://x", "#egg=", "\\\n", "--hash=", "{", "]", "prefix: /x"),
        *("a = {git = 3}\n", "platforms = [1]\n", "[pypi-dependencies]\n", "channels: ", "'"),
    ]
)
TEXTS = st.one_of(st.text(max_size=120), st.lists(WORDS, max_size=14).map("".join))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_no_text_brings_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any" / "any.txt"
    with contextlib.suppress(PipelineError):
        imported(path, text.encode("utf-8", "ignore").decode())


VERSIONS = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,2}){0,2}", fullmatch=True)
PACKAGES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
BUILDS = st.from_regex(r"([0-9]|py[0-9]{2}h[0-9a-f]{7}_[0-9])", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(PACKAGES, st.tuples(VERSIONS, BUILDS), min_size=1, max_size=8),
    st.lists(st.tuples(PACKAGES, VERSIONS).map("==".join), max_size=5, unique=True),
    st.lists(st.text(max_size=12).map(str.strip).filter(bool), max_size=2),
)
def test_drafts_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    conda: dict[str, tuple[str, str]],
    pip: list[str],
    channels: list[str],
) -> None:
    path = tmp_path_factory.getbasetemp() / "drafts" / "draft.txt"
    lines = [f"{name}={version}={build}" for name, (version, build) in conda.items()]
    draft = SpecDraft(name="d", channels=["c"], conda=lines, pip=pip)
    spec = imported(path, render_draft(draft)).spec
    assert (spec.conda, spec.pip) == (tuple(lines), tuple(pip))
    for channel in channels:
        assert parse_yaml(f"- {quoted(channel)}", path) == [channel]
    for line in lines:
        assert relaxed(line, None) == line
        assert relaxed(line, "build") == line.rsplit("=", 1)[0]


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    (tmp_path / "requirements.txt").write_text("six\n")
    facts = json.loads(runner.run("import", "requirements.txt", "--name", "t", "--json").stdout)
    assert (facts["path"], facts["kind"], facts["pip"]) == ("specs/t.yml", "requirements", 1)
    (tmp_path / "requirements.txt").write_text("six==1.17\n")
    runner.run("import", "requirements.txt", "--name", "t", expect=10)
    finished = runner.run("import", "requirements.txt", "--name", "t", "--force")
    assert "note: no python version is named" in finished.stderr
    assert read_spec(tmp_path / "specs/t.yml").pip == ("six==1.17",)


@pytest.mark.parametrize(
    ("url", "channel"),
    [
        ("https://conda.anaconda.org/conda-forge/noarch/a-1-0.conda", "conda-forge"),
        ("https://conda.anaconda.org/c/label/dev/noarch/a-1-0.conda", "c/label/dev"),
        ("https://repo.anaconda.com/pkgs/main/linux-64/a-1-0.conda", "defaults"),
        ("https://conda.corp.example/internal/noarch/a-1-0.conda", None),
        ("https://conda.vendor.example/max/noarch/a-1-0.conda", None),
        ("https://repo.corp.example/pkgs/main/noarch/a-1-0.conda", None),
        ("http://conda.anaconda.org.corp.example/x/noarch/a-1-0.conda", None),
    ],
)
def test_a_private_channel_never_becomes_the_public_one(
    tmp_path: Path, url: str, channel: str | None
) -> None:
    own = channel or url.rsplit("/", 2)[0]
    listed = imported(tmp_path / "list.txt", f"@EXPLICIT\n{url}\n").spec
    meta = tmp_path / "prefix/conda-meta"
    meta.mkdir(parents=True)
    (meta / "a.json").write_text(json.dumps({"name": "a", "version": "1", "url": url}))
    prefix = import_spec(tmp_path / "prefix", tmp_path, ImportOptions()).spec
    place = url.rsplit("/", 2)[0]
    pixi = imported(
        tmp_path / "pixi.toml",
        f"[workspace]\nchannels=['{place}']\n[dependencies]\nb={{channel='{place}'}}\n",
        ImportOptions(name="p"),
    ).spec
    lock = (
        f"version: 1\nmetadata: {{channels: [{{url: '{place}/'}}]}}\npackage:\n- {{name: a, "
        f"version: '1', manager: conda, platform: linux-64, url: '{url}', hash: {{md5: '0'}}}}\n"
    )
    locked = imported(tmp_path / "conda-lock.yml", lock, ImportOptions(name="l")).spec
    assert listed.channels == prefix.channels == pixi.channels == (own,)
    assert locked.channels in ((own,), (f"{own}/",))
    assert pixi.conda == (f"{own}::b",)


def test_lists_that_conda_and_pip_print(tmp_path: Path) -> None:
    text = "python=3.8\nnumpy>=1.19\npytorch::pytorch=1.7\n"
    found = imported(tmp_path / "specs.txt", text)
    assert (found.kind, found.spec.conda) == (FileKind.CONDA_SPECS, tuple(text.split()))
    table = (
        "# packages in environment at /x:\n#\n# Name  Version  Build  Channel\n"
        "numpy  1.19.2  py38_0\nxz 5.2 h1_0 conda-forge\nrich  10.0  pypi_0  pypi\n"
    )
    spec = imported(tmp_path / "table.txt", table).spec
    assert spec.conda == ("numpy=1.19.2=py38_0", "xz=5.2=h1_0", "pip")
    assert (spec.pip, spec.channels) == (("rich==10.0",), ("conda-forge",))
    table = "Package Version\n------- -------\nnumpy   1.19.2\npip     20.0\n"
    spec = imported(tmp_path / "pip.txt", table, ImportOptions(python="3.8")).spec
    assert (spec.conda, spec.pip) == (("python=3.8", "pip==20.0"), ("numpy==1.19.2",))
    exported = "# platform: linux-64\nfoo=1.0=<pip>\nqux=1!2.0=py37_0\nbaz=0.1.dev0=dev_0\n"
    found = imported(tmp_path / "export.txt", exported)
    assert (found.spec.conda, found.spec.pip) == (("qux=1!2.0=py37_0", "pip"), ("foo==1.0",))
    assert any("baz=0.1.dev0=dev_0" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("- rich\n- click\n", "x.txt:1: ", "drop the dashes"),
        ("# platform: win-64\nnumpy=1.2=py38_0\n", "for win-64", "linux-64"),
        ("@EXPLICIT\nhttps://h.example/c/win-64/a-1-0.conda\n", "for win-64", "linux-64"),
        ("version: '3'\nservices:\n  a: {image: b}\n", "x.txt:1: this is YAML without", "name"),
        (
            "[tool.poetry]\nname='x'\n[tool.poetry.dependencies]\nn='^1 || ^3'\n",
            "x.txt: `n = '^1 || ^3'` cannot be taken over: alternatives",
            "poetry export",
        ),
        ("[workspace\nchannels=[]\n", "x.txt", "correct"),
        ("dependencies:\n  - a={{ v }}\n", "x.txt:2: `a={{ v }}` contains the template", "write"),
        (
            "dependencies:\n  - pip:\n    - --rich\n",
            "x.txt:3: `--rich` is not a valid pip",
            "name==version",
        ),
        ("dependencies:\n  - npm: [foo]\n", "x.txt:2: expected a conda package", "take `npm:` out"),
        ("dependencies:\n  - sel(linux): foo\n", "x.txt:2: expected", "`- PACKAGE  # [linux]`"),
        ("$schema: https://x.example/s\nname: a\n", "x.txt:1: this is YAML without", "name"),
    ],
)
def test_what_is_refused_says_where_and_what_to_do(
    tmp_path: Path, text: str, words: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "x.txt", text)
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_first_import_finds_the_files_that_are_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("requirements.txt").write_text("rich\n")
    Path("environment.yml").write_text(
        "name: e\nchannels: [c]\ndependencies: [python, pip, {pip: [-r requirements.txt]}]\n"
    )
    assert not Path("specs").exists()
    found = import_spec(Path("environment.yml"), Path("specs"), ImportOptions())
    assert found.spec.pip == ("-r ../requirements.txt",)


def test_a_key_that_an_alias_needs_stays(tmp_path: Path) -> None:
    text = "name: n\nchannels: [c]\ncommon: &a [numpy, scipy]\ndependencies: *a\n"
    found = imported(tmp_path / "environment.yml", text)
    assert found.text == text.replace("common:", "x-common:")
    assert found.spec.conda == ("numpy", "scipy")


def test_pixi_platforms_that_say_what_hosts_offer(tmp_path: Path) -> None:
    text = (
        "[workspace]\nchannels = ['c']\n"
        "platforms = [{name = 'big', platform = 'linux-64', cuda = '12', glibc = '2.34'},\n"
        "  'osx-arm64', {platform = 'linux-64', cuda = '13'},\n"
        "  {platform = 'win-64', windows = '10'},\n"
        "  {name = 'board', platform = 'linux-aarch64', cuda = '12.8'}]\n"
        "[dependencies]\npython = '3.11.*'\ntool = {version = '*', when = '__cuda>=12'}\n"
        "[feature.x]\nplatforms = ['big', 'linux-aarch64', 'osx-arm64']\n"
        "[environments]\ndefault = ['x']\n"
    )
    found = imported(tmp_path / "pixi.toml", text, ImportOptions(name="p"))
    assert found.spec.options.platforms == ("linux-64", "osx-arm64", "linux-aarch64")
    system = found.spec.options.system
    assert (system.cuda, system.glibc) == ("12", "2.34")
    notes = "\n".join(found.notes)
    for lost in ("cuda 12.8 of board: it is 12 elsewhere", "tool {when = '__cuda>=12'}"):
        assert lost in notes
    text = text.replace("'big', 'linux-aarch64', 'osx-arm64'", "'win-64'")
    with pytest.raises(SpecError, match=r"pixi\.toml is for win-64 only"):
        imported(tmp_path / "pixi.toml", text, ImportOptions(name="p"))


def test_a_manifest_of_nothing_but_what_pixi_builds(tmp_path: Path) -> None:
    text = (
        "[workspace]\nchannels = ['c']\nplatforms = ['linux-64']\n"
        "[dependencies]\nown = {path = '.'}\n"
    )
    with pytest.raises(SpecError) as caught:
        imported(tmp_path / "pixi.toml", text, ImportOptions(name="p"))
    assert "requires no package of a channel or an index" in caught.value.message
    assert "own from .: built by pixi" in caught.value.message


def test_pixi_environments_features_and_targets(tmp_path: Path) -> None:
    text = (
        "[workspace]\nchannels = ['c']\nplatforms = ['linux-64', 'osx-arm64', 'win-64']\n"
        "[dependencies]\npython = {version = '3.11.*',\n  build = '*cpython'}\n"
        "[host-dependencies]\ncmake = '*'\n"
        "[target.linux-64.dependencies]\npython = '3.10.*'\n"
        "[feature.x.dependencies]\nscipy = {version = '>=1', build-number = '3'}\n"
        "[feature.x.pypi-options]\nindex-url = 'https://i.example.org/simple'\n"
        "[feature.y.dependencies]\nruff = '*'\n[environments]\ndefault = ['x']\nlint = ['y']\n"
    )
    found = imported(tmp_path / "pixi.toml", text, ImportOptions(name="p"))
    linux = read_spec(found.spec.path, platform="linux-64")
    mac = read_spec(found.spec.path, platform="osx-arm64")
    assert linux.conda == ("python 3.10.*", "cmake", "scipy >=1[build_number='3']", "pip")
    assert {*mac.conda} == {"python 3.11.* *cpython", "cmake", "scipy >=1[build_number='3']", "pip"}
    assert linux.pip == ("--index-url https://i.example.org/simple",)
    assert linux.options.platforms == ("linux-64", "osx-arm64")
    for lost in ("win-64", "[feature.y]", "[environments] lint"):
        assert any(lost in note for note in found.notes)
        assert f"# Not carried over: {lost}" in found.text or lost == "win-64"


def test_a_pyproject_with_indexes_and_sources(tmp_path: Path) -> None:
    text = (
        "[project]\nname='x'\nrequires-python='~=3.9'\ndependencies=['torch', 'bee[a]>=1', 'cee']\n"
        "[dependency-groups]\ndev=['pytest', {include-group='x'}]\n"
        "[[tool.uv.index]]\nname='pt'\nurl='https://i.example.org/whl/cu118'\n"
        "[tool.uv.sources]\ntorch={index='pt'}\nbee={git='https://g.example.org/bee', tag='v1'}\n"
        "cee={path='cee'}\n"
    )
    found = imported(tmp_path / "pyproject.toml", text, ImportOptions(name="p"))
    assert found.spec.pip == (
        "--extra-index-url https://i.example.org/whl/cu118",
        "torch",
        "bee[a] @ git+https://g.example.org/bee@v1",
        "../cee",
    )
    notes = "\n".join(found.notes)
    assert "[dependency-groups] dev: pytest, the group x" in notes
    assert "[tool.uv.sources] torch = {'index': 'pt'}" in notes


def write_venv(folder: Path, **settings: str) -> Path:
    packages = folder / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (folder / "lib64").symlink_to("lib")
    lines = {"home": "/usr/bin", "version_info": "3.11.7.final.0", **settings}
    (folder / "pyvenv.cfg").write_text("".join(f"{k} = {v}\n" for k, v in lines.items()))
    origins: dict[str, object] = {
        "pip": None,
        "setuptools": None,
        "rich": None,
        "bee": {"url": "https://g.example.org/bee", "vcs_info": {"vcs": "git", "commit_id": "c0"}},
        "app": {"url": "file:///home/me/app", "dir_info": {"editable": True}},
    }
    for name, origin in origins.items():
        info = packages / f"{name}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        if origin:
            (info / "direct_url.json").write_text(json.dumps(origin))
    (packages / "old-1.0.egg-info").mkdir()
    (packages / "more.pth").write_text("/home/me/more\nimport this\n")
    return folder


def test_a_virtual_environment(tmp_path: Path) -> None:
    folder = write_venv(tmp_path / "work/.venv", **{"include-system-site-packages": "true"})
    found = import_spec(folder, tmp_path, ImportOptions())
    assert (found.kind, found.spec.name, found.locks) == (FileKind.VENV, "work", True)
    assert found.spec.conda == ("python=3.11", "pip")
    assert found.spec.pip == (
        "app @ file:///home/me/app",
        "bee @ git+https://g.example.org/bee@c0",
        "rich==2.0",
        "setuptools",
    )
    notes = "\n".join(found.notes)
    for said in ("3.11.7.final.0", "pip 2.0 is left to conda", "setuptools 2.0", "system's python"):
        assert said in notes
    assert "old-1.0.egg-info" in notes
    assert "more.pth puts /home/me/more on the path" in notes
