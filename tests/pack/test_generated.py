"""What packing puts into every archive: activation in any shell, and conda-unpack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envferry.archive.index import BinaryString, FileEntry, PrefixEdits
from envferry.base.env_variables import read_variables
from envferry.errors import UsageError
from envferry.names import check_env_prefix
from envferry.pack import unpacking
from envferry.pack.existing_env import describe_env
from envferry.pack.generated import fish_script
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.progress import Silent
from tests.support.environments import SITE, conda_record, pack, pip_record
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Artifact


SHELLS = [
    shell for name in ("bash", "dash", "zsh", "ksh", "busybox") if (shell := shutil.which(name))
]
LONG = "a-folder/with-a-long-name/so-that-no-old-prefix/is-as-long/envs/demo"


def run_shell(shell: str, script: str, **environ: str) -> str:
    """Run a script in a shell with nothing in its environment; return what it prints."""
    argv = [shell, "sh", "-euc"] if shell.endswith("busybox") else [shell, "-euc"]
    finished = subprocess.run(
        [*argv, script],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


@pytest.fixture
def installed(tree: Path, envs: Path) -> Path:
    """Return an installed environment with variables and scripts of packages."""
    (tree / "conda-meta/state").write_text(
        json.dumps({"env_vars": {"HELLO": "it's $HOME", "GONE": "***unset***"}})
    )
    conda_record(tree, "package", {"etc/conda/env_vars.d/p.json": b'{"FROM_PACKAGE": "1"}'})
    for folder, word in (("activate.d", "set"), ("deactivate.d", "unset")):
        (tree / "etc/conda" / folder).mkdir()
        # Written for a shell without `set -eu`.
        (tree / f"etc/conda/{folder}/a.sh").write_text(
            f"WORDS=\"${{NEVER_SET}}{word}\"\nfalse\n[ -n '' ] && true\n"
        )
        (tree / f"etc/conda/{folder}/b.csh").write_text("setenv X 1\n")
    artifact = pack(tree)
    install(artifact.archive_path, envs, artifact.manifest)
    return envs / "demo"


@pytest.mark.parametrize("shell", SHELLS)
def test_activation_sets_and_deactivation_restores(installed: Path, shell: str) -> None:
    script = f"""
        . {installed}/bin/activate
        echo "$CONDA_PREFIX|$PATH|$HELLO|${{GONE-none}}|$FROM_PACKAGE|$WORDS"
        tool
        . {installed}/bin/deactivate
        echo "${{CONDA_PREFIX-none}}|$PATH|$HELLO|$GONE|${{FROM_PACKAGE-none}}|$WORDS"
        env | grep -c ENVFERRY || :
    """
    told = run_shell(shell, script, HELLO="before", GONE="here").splitlines()
    assert told == [
        f"{installed}|{installed}/bin:/usr/bin:/bin|it's $HOME|none|1|set",
        "it runs",
        "none|/usr/bin:/bin|before|here|none|unset",
        "0",
    ]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("named", [True, False], ids=["LC_ALL", "LANG"])
def test_cep_32_scripts_run_by_code_points_and_backwards(
    tree: Path, envs: Path, tmp_path: Path, shell: str, named: bool
) -> None:
    """`alphabetical order`, which is that of code points, and `reverse alphabetical order`."""
    for folder in ("activate.d", "deactivate.d"):
        (tree / "etc/conda" / folder).mkdir(parents=True)
        for name in ("a", "B", "_c", "zz", "Z", *"0123456789"):
            path = tree / f"etc/conda/{folder}/{name}.sh"
            path.write_text(f"WORDS=${{WORDS-}}{name},\n")
    artifact = pack(tree)
    install(artifact.archive_path, envs, artifact.manifest)
    locale = {"LC_ALL" if named else "LANG": "en_US.UTF-8"}
    if localedef := shutil.which("localedef"):
        made = [localedef, "-i", "en_US", "-f", "UTF-8", str(tmp_path / "en_US.UTF-8")]
        subprocess.run(made, check=False, capture_output=True)
    script = f"""
        . {envs}/demo/bin/activate
        echo "$WORDS${{LC_ALL-none}}"; WORDS=
        . {envs}/demo/bin/deactivate
        echo "$WORDS${{LC_ALL-none}}"
    """
    kept = locale.get("LC_ALL", "none")
    assert run_shell(shell, script, LOCPATH=str(tmp_path), **locale).splitlines() == [
        f"0,1,2,3,4,5,6,7,8,9,B,Z,_c,a,zz,{kept}",
        f"zz,a,_c,Z,B,9,8,7,6,5,4,3,2,1,0,{kept}",
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_activation_needs_no_program(installed: Path, shell: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    script = f". {installed}/bin/activate; echo $CONDA_PREFIX"
    assert run_shell(shell, script, PATH=str(tmp_path / "empty")) == f"{installed}\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_another_environment_is_left_first(installed: Path, shell: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(installed.resolve(), other, symlinks=True)
    if not shell.endswith(("bash", "zsh")):
        text = (other / "bin/activate").read_text().replace(str(installed), str(other))
        (other / "bin/activate").write_text(text)
    script = f"""
        . {installed}/bin/activate
        . {other}/bin/activate
        . {other}/bin/activate
        echo "$CONDA_PREFIX|$PATH"
        . {other}/bin/deactivate
        echo "$PATH"
    """
    assert run_shell(shell, script) == f"{other}|{other}/bin:/usr/bin:/bin\n/usr/bin:/bin\n"


def test_a_copy_is_activated_where_it_is(installed: Path, tmp_path: Path) -> None:
    """bash says where a script is, whatever is written in it."""
    shutil.copytree(installed.resolve(), tmp_path / "copy", symlinks=True)
    script = f"cd {tmp_path}/copy/bin; . ./activate; echo $CONDA_PREFIX"
    assert run_shell(shutil.which("bash") or "bash", script) == f"{tmp_path}/copy\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "before",
    [
        "cd() { echo moved; return 1; }; pwd() { false; }",
        "[ -z $BASH_VERSION ] || shopt -s expand_aliases; alias cd=false pwd=false",
        "set -f",
        "set -o noglob",
    ],
)
def test_what_a_user_has_made_of_the_shell_does_not_matter(
    installed: Path, tmp_path: Path, shell: str, before: str
) -> None:
    """Such as jumping tools, which put a function in the place of `cd`; it is there afterwards."""
    place = installed
    if shell.endswith(("bash", "zsh")):  # they find where it lies
        place = tmp_path / "copy"
        shutil.copytree(installed.resolve(), place, symlinks=True)
    lines = (
        f"BASH_VERSION=${{BASH_VERSION-}}; {before}",
        "flags=$-",
        f". {place}/bin/activate",
        'echo "$CONDA_PREFIX|$WORDS"',
        f". {place}/bin/deactivate",
        '[ "$flags" = "$-" ]; echo "$WORDS"',
    )
    assert run_shell(shell, "\n".join(lines)) == f"{place}|set\nunset\n"


def test_fish_gets_the_variables(tree: Path) -> None:
    text = fish_script({"A": "it's", "B": "***unset***"})
    assert "    set -gx A 'it\\'s'\n" in text
    assert "    set -e B\n" in text
    assert text.index("set -gx A") < text.index("# Run the activate scripts")
    assert text.count("_ENVFERRY_OLD_A") > 3
    assert text.endswith("\n_activate\n")


@pytest.mark.parametrize("state", ["", "[]", "[" * 100_000, "\xff", '{"env_vars": 5}'])
def test_a_state_that_is_none_is_passed_over(tree: Path, state: str) -> None:
    (tree / "conda-meta/state").write_bytes(state.encode("latin-1"))
    assert read_variables(tree) == {}


def test_names_that_no_shell_takes_are_named(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "conda-meta/state").write_text('{"env_vars": {"A;rm -rf x": "1", "B": "2"}}')
    assert read_variables(tree) == {"B": "2"}
    assert "A;rm -rf x" in caplog.text


def existing_env(tree: Path) -> Artifact:
    """Pack a tree with a file of each kind that holds the prefix, and python to unpack with."""
    prefix = str(tree)
    record = {"_path": "bin/python3-config", "prefix_placeholder": "x" * 255, "file_mode": "text"}
    conda_record(
        tree,
        "config",
        {"bin/python3-config": f"#!/bin/sh\nprefix={prefix}\nother={prefix}2\n".encode()},
        paths_data={"paths": [{**record, "sha256_in_prefix": "0" * 64}], "paths_version": 1},
    )
    pip_record(tree, "scripts", {})
    (tree / "bin/script").write_text(f"#!{prefix}/bin/python\nprint('{prefix}')\n")
    (tree / "bin/script").chmod(0o755)
    (tree / "lib/absolute").symlink_to(f"{prefix}/bin/tool")
    (tree / "lib/root").symlink_to(prefix)
    (tree / SITE / "größe.txt").write_text(f"größe {prefix}\n")
    return pack(tree)


def contents(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return mode and content of everything in a tree."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = (0, os.readlink(path))  # noqa: PTH115
        elif path.is_file():
            found[name] = (path.stat().st_mode, path.read_bytes())
    return found


def unpack(artifact: Artifact, target: Path) -> None:
    """Unpack an archive as any tar does."""
    target.mkdir(parents=True)
    subprocess.run(["tar", "--zstd", "-xf", artifact.archive_path, "-C", target], check=True)


def run_unpack(target: Path) -> subprocess.CompletedProcess[str]:
    """Run conda-unpack with this test's python, with no envferry in reach."""
    argv: list[str | Path] = [sys.executable, "-I", "-S", target / "bin/conda-unpack"]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("place", ["e", LONG])
def test_conda_unpack_gives_what_install_gives(
    tree: Path, envs: Path, tmp_path: Path, place: str
) -> None:
    artifact = existing_env(tree)
    target = tmp_path / place
    unpack(artifact, target)
    finished = run_unpack(target)
    assert (finished.returncode, finished.stderr) == (0, "")
    install(artifact.archive_path, envs, artifact.manifest, prefix=str(target))
    expected = contents(envs / "demo")
    assert contents(target) == expected
    assert f"other={tree}2\n".encode() in (target / "bin/python3-config").read_bytes()
    # A second time there is nothing to do, also where the new prefix holds the old one.
    assert run_unpack(target).returncode == 0
    assert contents(target) == expected


def test_conda_unpack_below_the_old_prefix_and_taken_up(tree: Path, tmp_path: Path) -> None:
    """The new prefix starts with the old one; the first run was killed after some files."""
    artifact = existing_env(tree)
    shutil.rmtree(tree)
    target = tree / "again"
    unpack(artifact, target)
    activate = (target / "bin/activate").read_bytes()
    run_unpack(target)
    expected = contents(target)
    (target / "bin/activate").write_bytes(activate)  # changed last: so this is a run cut short
    assert run_unpack(target).returncode == 0
    assert contents(target) == expected


def test_conda_unpack_refuses_before_it_changes_anything(tree: Path, tmp_path: Path) -> None:
    artifact = existing_env(tree)
    target = tmp_path / "/".join(["a-folder-with-a-name"] * 13)
    unpack(artifact, target)
    before = contents(target)
    finished = run_unpack(target)
    assert finished.returncode == 1
    assert "bin/python has room for a prefix of 255 bytes" in finished.stderr
    assert contents(target) == before
    unpack(artifact, tmp_path / "moved")
    assert run_unpack(tmp_path / "moved").returncode == 0
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    finished = run_unpack(tmp_path / "elsewhere")
    assert f"already set up for {tmp_path}/moved" in finished.stderr


@pytest.mark.parametrize("name", ["it's", "$(touch ran)", "a:b", "new\nline", "a%b", "bad\udcff"])
def test_conda_unpack_refuses_what_scripts_interpret(tree: Path, tmp_path: Path, name: str) -> None:
    """As install does, by the same rule, and before anything is changed."""
    target = tmp_path / name
    unpack(existing_env(tree), target)
    before = contents(target)
    finished = run_unpack(target)
    assert finished.returncode == 1
    assert "conda-unpack: no environment can live in" in finished.stderr
    assert ascii(min(unpacking.odd_characters(str(target)))) in finished.stderr
    assert contents(target) == before


def test_conda_unpack_and_install_refuse_the_same() -> None:
    for character in map(chr, range(0x3000)):
        try:
            check_env_prefix(f"/envs/a{character}b", hint="")
        except UsageError:
            assert unpacking.odd_characters(character) == [character]
        else:
            assert unpacking.odd_characters(character) == []


def test_capacities_are_in_the_script(tree: Path) -> None:
    artifact = existing_env(tree)
    text = subprocess.run(
        ["tar", "--zstd", "-xOf", artifact.archive_path, "bin/conda-unpack"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    length = len(f"{tree}/lib")
    string = BinaryString(5, length, length + 255 - len(str(tree)), 1)
    entry = FileEntry(path="bin/python", edits=PrefixEdits(strings=(string,)))
    assert entry.edits is not None
    assert f"('bin/python', 'strings', ([(5, {length}, {string.capacity}, 1)], ()))" in text
    assert "from envferry" not in text


def test_equal_trees_give_equal_archives(tree: Path) -> None:
    one = existing_env(tree)
    built = describe_env(tree, prefix=None, name=None, lock_dir=tree.parents[2] / "locks2")
    options = PackOptions(output_dir=tree.parents[2] / "desk2", mtime=315532800)
    assert pack_env(built, options=options, progress=Silent()).manifest == one.manifest
