"""Lint: every rule finds what it is about, on its line, and nothing in good specs."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envferry.errors import PipelineError
from envferry.lock.pypi_names import pypi_names
from envferry.models import LockedPackage
from envferry.specs.lint.linting import lint_spec
from envferry.specs.lint.rules import RULES

ROOT = Path(__file__).parents[3]
GOOD = """\
name: n
channels: [conda-forge]
dependencies:
  - python=3.11
  - numpy=2
  - pip
  - pip:
      - rich
      - bee @ git+https://git.example.org/a/bee.git@0123456789012345678901234567890123456789
      - cee @ git+ssh://git@git.example.org/a/cee@v1.2.0#subdirectory=x
"""


def lint(directory: Path, text: str, *locked: LockedPackage) -> list[tuple[str, int]]:
    path = directory / "n.yml"
    path.write_text(text)
    findings = lint_spec(path, pypi_names, locked)
    assert all(str(item).startswith(f"{path}:{item.line}: {item.rule.code}") for item in findings)
    return [(item.rule.code, item.line) for item in findings]


def test_each_option_of_a_line_is_told(tmp_path: Path) -> None:
    text = GOOD.replace("- rich", "- rich --config-settings=a=b --global-option=c")
    assert lint(tmp_path, text) == [("S113", 8), ("S113", 8)]


def test_what_is_for_other_platforms_does_not_meet(tmp_path: Path) -> None:
    """Each finding once, on its line; two lines for one package are both seen."""
    head = "name: n\nchannels: [c]\nplatforms: [linux-64, osx-arm64]\ndependencies:\n"
    apart = (
        "  - casadi=3.7  # [linux]\n  - mkl  # [linux]\n  - pip\n  - pip:\n"
        "      - casadi==3.7.2  # [osx]\n      - numpy ; sys_platform == 'darwin'\n"
    )
    assert lint(tmp_path, head + apart) == []
    met = apart.replace("# [osx]", "").replace("'darwin'", "'linux'")
    assert lint(tmp_path, head + met) == [("S101", 9), ("S103", 10)]
    twice = (
        "  - mkl  # [linux]\n  - openblas  # [osx]\n  - pip\n  - pip:\n"
        "      - numpy<2  # [linux]\n      - numpy  # [osx]\n      - scipy\n"
    )
    assert lint(tmp_path, head + twice) == [("S103", 9), ("S103", 10), ("S103", 11)]


def test_a_good_spec_has_no_findings(tmp_path: Path) -> None:
    assert lint(tmp_path, GOOD) == []
    assert lint(tmp_path, (ROOT / "specs/demo.yml").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("- rich", "- numpy", ("S101", 8)),
        ("- rich", "- NumPy>=2 ; python_version > '3'", ("S101", 8)),
        ("- numpy=2", "- pytorch=2", None),
        ("- rich", "- torch==2.8", ("S103", 8)),
        ("- rich", "- opencv-python", ("S103", 8)),
        ("- rich", "- opencv-python==4.5.5.64", ("S103", 8)),
        ("- rich", "- opencv-python==4.1.2.30", None),
        ("- numpy=2", "- numpy=2\n  - cudatoolkit=11.8", None),
        ("@0123456789012345678901234567890123456789", "@main", ("S105", 9)),
        ("@0123456789012345678901234567890123456789", "", ("S105", 9)),
        ("@v1.2.0", "", ("S105", 10)),
        ("- rich", "- git+https://git.example.org/x.git@dev#egg=x", ("S105", 8)),
        ("- rich", "- https://github.example.org/a/b/archive/master.zip", ("S105", 8)),
        ("- rich", "- x @ https://g.example.org/a/b/archive/refs/heads/dev.tar.gz", ("S105", 8)),
        ("- rich", "- x @ https://g.example.org/a/b/-/archive/main/b-main.zip", ("S105", 8)),
        ("- rich", "- https://api.example.org/repos/a/b/zipball/main", ("S105", 8)),
        ("- rich", "- https://g.example.org/a/b/archive/refs/tags/v1.2.zip", None),
        ("- rich", f"- https://g.example.org/a/b/archive/{'0123456789' * 4}.zip", None),
        ("- rich", f"- https://g.example.org/b/-/archive/{'01' * 20}/b-{'01' * 20}.zip", None),
        ("- rich", f"- https://g.example.org/a/archive/main.zip#sha256={'0' * 64}", None),
        ("- rich", "- https://files.example.org/archive/x/rich-1.0-py3-none-any.whl", None),
        ("- numpy=2\n", "- tzdata\n  - graphviz\n", None),
        ("  - pip\n", "", ("S106", 7)),
        ("- rich", "- -e ./app", ("S107", 8)),
        ("- rich", "- --editable=./app", ("S107", 8)),
        ("- rich", "- ./app", ("S108", 8)),
        ("- rich", "- wheels/a-1-py3-none-any.whl", ("S108", 8)),
        ("- rich", "- 'a @ file:///home/me/a-1-py3-none-any.whl'", ("S108", 8)),
        ("[conda-forge]", "[conda-forge, defaults]", ("S109", 2)),
        ("name: n", "name: n\nprefix: /home/me/miniconda3", ("S111", 2)),
        (
            "- numpy=2",
            "- numpy=2.0=py310_0\nplatforms: [linux-64, linux-aarch64]\nx-a:\n  - a",
            ("S112", 5),
        ),
    ],
)
def test_each_rule(tmp_path: Path, old: str, new: str, expected: tuple[str, int] | None) -> None:
    assert old in GOOD
    found = lint(tmp_path, GOOD.replace(old, new))
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[conda-forge]", "[conda-forge, 'https://me:SECRET@h.example/c']", 2),
        ("[conda-forge]", "[conda-forge, 'https://h.example/t/SECRET/c']", 2),
        ("- numpy=2", "- https://h.example/t/SECRET/c::numpy=2", 5),
        ("- rich", "- rich @ git+https://SECRET@h.example/rich.git@v1.0", 8),
    ],
)
def test_a_login_is_named_and_not_shown(tmp_path: Path, old: str, new: str, line: int) -> None:
    (tmp_path / "n.yml").write_text(GOOD.replace(old, new))
    (found,) = lint_spec(tmp_path / "n.yml", pypi_names)
    assert (found.rule.code, found.line) == ("S116", line)
    assert "h.example" in str(found)
    assert "SECRET" not in str(found)


def test_a_login_in_a_file_that_the_pip_section_names_is_told(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "more.txt").write_text("-r deep/most.txt\n-c limits.txt\n")
    (tmp_path / "deep" / "most.txt").write_text(
        "a @ https://me:SECRET@a.example/a-1-py3-none-any.whl\n"
        "--extra-index-url https://me:SECRET@b.example/simple\n-c limits.txt\n"
        "fine @ https://$USER:${TOKEN}@e.example/fine-1-py3-none-any.whl\n"
    )
    limit = "x @ https://SECRET@c.example/x-1-py3-none-any.whl\n"
    (tmp_path / "deep" / "limits.txt").write_text(limit)
    (tmp_path / "limits.txt").write_text(limit.replace("c.", "d."))
    for lines, hosts in (
        ("- -r more.txt", "abcd"),
        ("- -c limits.txt", "d"),
        ("- --requirement=deep/most.txt", "abc"),
    ):
        (tmp_path / "n.yml").write_text(GOOD.replace("- rich", lines))
        found = [
            one for one in lint_spec(tmp_path / "n.yml", pypi_names) if one.rule.code == "S116"
        ]
        assert {one.line for one in found} == {8}
        assert sorted(re.findall(r"(\w)\.example", "".join(map(str, found)))) == [*hosts]
        assert "SECRET" not in "".join(map(str, found))


def test_cuda_from_both_sides(tmp_path: Path) -> None:
    text = GOOD.replace("- numpy=2", "- cudatoolkit=11.8")
    assert lint(tmp_path, text.replace("- rich", "- nvidia-cudnn-cu12==9")) == [("S104", 8)]
    assert lint(tmp_path, text.replace("- rich", "- torch==2.1+cu118")) == [("S104", 8)]


def test_one_package_under_two_names(tmp_path: Path) -> None:
    text = GOOD.replace("- numpy=2", "- pytorch=2").replace("- rich", "- torch==2.8")
    assert lint(tmp_path, text) == [("S101", 8)]
    text = GOOD.replace("- numpy=2", "- opencv").replace("- rich", "- opencv-python-headless")
    assert lint(tmp_path, text) == [("S102", 8)]


def test_what_the_lock_brought(tmp_path: Path) -> None:
    package = LockedPackage(
        manager="conda",
        name="rich",
        version="14",
        platform="linux-64",
        url="file:///r.conda",
        dependencies={"python": ">=3.9"},
    )
    assert lint(tmp_path, GOOD, package) == [("S102", 8)]


@pytest.mark.parametrize(
    ("name", "needs", "codes"),
    [
        # The files of a time zone database, and a distribution that has its own.
        ("tzdata", {}, []),
        ("libclang", {"libllvm16": "*"}, []),
        ("tzdata", {"python": ">=3.9"}, ["S102"]),
        # Both write bin/ninja.
        ("ninja", {"libstdcxx": ">=13"}, ["S102"]),
    ],
)
def test_what_the_lock_brought_under_a_name_that_is_another_thing_for_pip(
    tmp_path: Path, name: str, needs: dict[str, str], codes: list[str]
) -> None:
    package = LockedPackage(
        manager="conda",
        name=name,
        version="1",
        platform="linux-64",
        url=f"file:///c/{name}-1-0.conda",
        dependencies=needs,
    )
    found = lint(tmp_path, GOOD.replace("- rich", f"- {name}"), package)
    assert [code for code, _ in found] == codes


def test_both_halves_may_name_different_things(tmp_path: Path) -> None:
    for name in ("tzdata", "libclang", "graphviz", "zstd", "lmdb"):
        text = GOOD.replace("- numpy=2\n", f"- {name}\n").replace("- rich", f"- {name}")
        assert lint(tmp_path, text) == []


def test_pins_that_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "n.yml"
    path.write_text(GOOD)
    (finding,) = lint_spec(path, pypi_names, gone={"numpy=2": "numpy 1.*"})
    assert (finding.rule.code, finding.line) == ("S110", 5)
    assert "`numpy=2` is in no channel (`numpy 1.*` is)" in str(finding)


def test_every_rule_is_documented() -> None:
    page = (ROOT / "docs/lint.md").read_text()
    for code, rule in RULES.items():
        assert code == rule.code
        assert f"| {code} | {rule.title} | {rule.why} | {rule.fix} |" in page


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("dependencies:\n", "  - pip:\n", "      - ", "  - ", "git+", "x@", "\n", "#egg="),
                *("name: base\n", "platforms: 3\n", "envferry: [\n", "channels: {a: b}\n", "-e "),
                *("numpy", "=", "file:", "'", "1.0", "[", "prefix:\n"),
            ]
        ),
        max_size=15,
    ).map("".join)
)
def test_no_text_brings_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "lint.yml"
    path.write_text(text)
    with contextlib.suppress(PipelineError):
        lint_spec(path, pypi_names)
