"""No line of any kind of input is lost in silence: it is obeyed, named as not obeyed, or refused.

Every generated line holds a word of its own, which must come out again somewhere.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lost_words import GIVEN_OFTEN, check, filled, some

if TYPE_CHECKING:
    from pathlib import Path

REQUIREMENTS = (
    *("{}", "{}==1.0", "{}>=1 ; python_version > '3'", "{}[a,b]", "{} @ https://h.example/{}.zip"),
    *("git+https://h.example/{}", "-e git+https://h.example/x#egg={}", "-e ./{}", "./{}", "a/{}"),
    *("https://h.example/{}-1.0.tar.gz", "https://h.example/{}-1.0-py3-none-any.whl", "{}.whl"),
    *("--extra-index-url https://{}.example/", "-i https://{}.example", "--find-links {}"),
    *("--trusted-host {}", "--use-feature={}", "--{}", "- {}", "{} --config-settings={}=1"),
    *(
        "{} --hash=sha256:aa",
        "hg+https://h.example/{}",
        "--no-binary {}",
        "{}=1",
        "{}::a",
        "{{{}}}",
    ),
    *("{} # why", "-r {}.txt", "--only-binary={}", "{} --global-option=x", "{} 1.0", "file:///{}"),
)
CONDA = (
    *(
        "{}",
        "{}=1.0",
        "{}=1!1.0=py_0",
        "{} >=1,<2",
        "{}[build_number=1]",
        "{}/linux-64::a",
        "{}::a",
    ),
    *(
        "https://h.example/{}::a",
        "https://h.example/{}/noarch/a-1-0.conda",
        "a[md5={}]",
        "{}=1=<pip>",
    ),
    *("{}=1=pypi_0", "{}=1=dev_0", "{{{{ {} }}}}", "{}  # see [1]", "{}  # [win]", "{}  # [linux]"),
)
PIXI = (
    *(
        '[dependencies]\n{} = "*"',
        '[host-dependencies]\n{} = "1.*"',
        '[run-dependencies]\n{} = "*"',
    ),
    *('[build-dependencies]\n{} = ">=1"', "[dependencies]\n{} = {{git = 'https://h.example/a'}}"),
    *("[dependencies]\n{} = {{path = '.'}}", "[dependencies]\na = {{channel = '{}'}}"),
    *("[dependencies]\na = {{version = '*', {} = '1'}}", "[pypi-dependencies]\n{} = '*'"),
    *("[pypi-dependencies]\na = {{{} = true}}", "[pypi-options]\nindex-url = 'https://{}.example'"),
    *("[pypi-options]\nextra-index-urls = ['https://{}.example']", "[pypi-options]\n{} = true"),
    *("[feature.{}.dependencies]\na = '*'", "[environments]\n{} = []", "[target.{}.dependencies]"),
    *("[target.linux-64.dependencies]\n{} = '*'", "[target.win-64.dependencies]\na = '{}'"),
    *("[{}]\na = '1'", "[constraints]\n{} = '1'", "[system-requirements]\n{} = '1'"),
    *("[activation.env]\n{} = '1'", "[tasks]\n{} = 'x'"),
)
PYPROJECT = (
    *("[project]\ndependencies = ['{}']", "[project.optional-dependencies]\n{} = ['a']"),
    *("[project.optional-dependencies]\na = ['{}']", "[dependency-groups]\ndev = ['{}']"),
    *("[[tool.uv.index]]\nurl = 'https://{}.example'", "[tool.uv.sources]\na = {{index = '{}'}}"),
    *("[tool.uv]\nconstraint-dependencies = ['{}']", "[tool.uv]\ndev-dependencies = ['{}']"),
)
KEYS = (
    *("channels: [{}]", "{}: [a, b]", "x-{}: [a]", "prefix: /{}/envs/a"),
    *("pip-repositories: ['https://{}.example']", "category: {}", "platforms: [linux-64, {}]"),
)


PIXI_HEAD = """\
[workspace]
channels = ['c']
platforms = ['linux-64', 'osx-arm64', 'win-64']
[target.linux.dependencies]
anchor = '*'
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost")


@GIVEN_OFTEN
@given(some(REQUIREMENTS))
def test_requirements(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    check(place / "requirements.txt", "\n".join(lines) + "\n", words)


@GIVEN_OFTEN
@given(some(CONDA), st.sampled_from(["", "# platform: linux-64\n"]))
def test_conda_lists(place: Path, templates: list[str], head: str) -> None:
    lines, words = filled(templates)
    check(place / "list.txt", head + "\n".join(lines) + "\n", words)


@GIVEN_OFTEN
@given(some(CONDA), st.lists(st.sampled_from(REQUIREMENTS), max_size=3), some(KEYS, 2))
def test_environments(place: Path, conda: list[str], pip: list[str], keys: list[str]) -> None:
    lines, words = filled([*conda, *pip, *dict.fromkeys(keys)])
    rows = []
    for number, line in enumerate(lines):
        body, mark, comment = line.partition("  # ")
        item = f"- {json.dumps(body)}{mark}{comment}"
        if number < len(conda):
            rows.append(f"  {item}")
        elif number < len(conda) + len(pip):
            rows += ["  - pip:"] if number == len(conda) else []
            rows.append(f"      {item}")
    heads = lines[len(conda) + len(pip) :]
    text = "\n".join(["name: n", *heads, "dependencies:", *rows, ""])
    check(place / "environment.yml", text, words)


@GIVEN_OFTEN
@given(some(PIXI))
def test_pixi(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    check(place / "pixi.toml", PIXI_HEAD + "\n".join(lines) + "\n", words)


@GIVEN_OFTEN
@given(some(PYPROJECT))
def test_pyproject(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    tables: dict[str, list[str]] = {"[project]": ["name = 'x'"]}
    for line in lines:
        head, _, body = line.partition("\n")
        tables.setdefault(head if head[:2] != "[[" else line, []).append(body)
    text = "\n".join("\n".join([head.partition("\n")[0], *body]) for head, body in tables.items())
    check(place / "pyproject.toml", text + "\n", words)


URLS = (
    *("https://h.example/{}/linux-64/a-1-0.conda", "https://h.example/c/noarch/{}-1-0.tar.bz2"),
    *("file:///srv/{}-1-0.conda", "{}", "# pip {} @ https://h.example/{}-1-py3-none-any.whl"),
)


@GIVEN_OFTEN
@given(some(URLS))
def test_explicit_lists(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    check(place / "explicit.txt", "\n".join(["@EXPLICIT", *lines, ""]), words)


TABLES = ("{} 1.0 0 c", "a {} 0 c", "b 1 {} c", "d 1 0 {}", "{} 1 pypi_0 pypi", "e {} pypi_0 pypi")


@GIVEN_OFTEN
@given(some(TABLES))
def test_tables_of_conda(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    head = "# packages in environment at /x:\n#\n# Name  Version  Build  Channel\n"
    check(place / "table.txt", head + "\n".join(lines) + "\n", words)


@GIVEN_OFTEN
@given(some(("{} 1.0", "a {}", "b 1.0 /srv/{}")))
def test_tables_of_pip(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    head = "Package Version Editable project location\n------- ------- ----\n"
    check(place / "pip.txt", head + "\n".join(lines) + "\n", words)


SPECS = ("{}", "{}=1", "a={}", "a>={},<9", "{}::a", "a[build={}*]", "a[channel={}]", "a=1=*{}*")


@GIVEN_OFTEN
@given(some(SPECS))
def test_lists_for_conda_create(place: Path, templates: list[str]) -> None:
    lines, words = filled(templates)
    # A pin with one `=` is no requirement of pip, so all are read as conda's.
    check(place / "specs.txt", "\n".join([*lines, "zlib=1", ""]), words)


ALONE = [
    pytest.param(file, head, template, id=f"{file}-{number}")
    for file, head, templates in (
        ("requirements.txt", "anchor==1\n", REQUIREMENTS),
        ("list.txt", "# platform: linux-64\nanchor=1=0\n", CONDA),
        ("pixi.toml", PIXI_HEAD, PIXI),
        ("explicit.txt", "@EXPLICIT\nhttps://h.example/c/linux-64/b-1-0.conda\n", URLS),
        ("table.txt", "# packages in environment at /x:\nanchor 1 0 c\n", TABLES),
    )
    for number, template in enumerate(templates)
]


@pytest.mark.parametrize(("file", "head", "template"), ALONE)
def test_each_line_beside_a_plain_one(tmp_path: Path, file: str, head: str, template: str) -> None:
    """What refuses a whole file hides what becomes of the lines beside it."""
    lines, words = filled([template])
    check(tmp_path / file, f"{head}{lines[0]}\n", words)
