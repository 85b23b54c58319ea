"""What the command line says to somebody who does not know it yet."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envferry.cli.main import COMMANDS, OTHER_WORDS, SECTIONS, envferry
from envferry.cli.shared.hints import places_in, with_places
from envferry.models import Checks
from envferry.process import find_program
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import ENVFERRY, CliRunner
from tests.support.installing import install, manifest_of
from tests.support.packed import pack
from tests.support.published import Made, publish

if TYPE_CHECKING:
    from pathlib import Path

SPEC = "dependencies: [python]\n"


@pytest.fixture
def cli(tmp_path: Path) -> CliRunner:
    environ = {"ENVFERRY_ENVS_DIR": str(tmp_path / "envs"), "ENVFERRY_REGISTRY": "artifacts"}
    return CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)


def test_every_command_is_in_one_section() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) == len(COMMANDS)
    assert set(OTHER_WORDS.values()) <= set(COMMANDS)
    assert not set(OTHER_WORDS) & set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["isntall", "demo"], 2, "did you mean `install`?"),  # codespell:ignore isntall
        (["uninstall", "demo"], 2, "did you mean `remove`?"),
        (["qqq"], 2, "see `envferry --help`"),
        (["lock", "demo.yaml"], 7, "did you mean `demo`?"),
        (["lock", "dmeo"], 7, "did you mean `demo`?"),
        (["lock", "other"], 7, "create it, or name another"),
        (["run", "dmo", "--", "true"], 7, "did you mean `demo`?"),
        (["remove", "dmo", "--all", "--yes"], 7, "did you mean `demo`?"),
        (["rollback", "other"], 7, "run `envferry install other`, or name another --envs-dir"),
        (["rollback", "demo", "2321"], 7, "`envferry history demo` shows what there is"),
        (["lock", "--check"], 7, "run `envferry lock demo`"),
        (["install", "no.squashfs", "--mount"], 7, "`envferry image REF no.squashfs` makes one"),
        (["ls", "--registry", "no"], 7, "name one with --registry or ENVFERRY_REGISTRY: if it is"),
    ],
)
def test_hints(cli: CliRunner, words: list[str], code: int, hint: str) -> None:
    cli.write_spec("demo", SPEC)
    manifest = manifest_of(cli.home / "demo.tar.zst", b"1")
    install(cli.home / "demo.tar.zst", cli.home / "envs", manifest)
    assert f"hint: {hint}" in cli.run(*words, expect=code).stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rollback", "other", "--envs-dir", "my envs"], "install other --envs-dir 'my envs'`"),
        (["rollback", "other", "--envs-dir=envs"], "install other --envs-dir envs`"),
        (["show", "demo@x", "--registry", "place"], "ls demo --registry place`"),
        (["show", "demo@x", "--registry=place"], "ls demo --registry place`"),
    ],
)
def test_hints_are_true_when_typed(cli: CliRunner, words: list[str], hint: str) -> None:
    publish(Registry.open(str(cli.home / "place")), cli.home / "made", Made())
    assert f"envferry {hint}" in cli.run(*words, expect=7).stderr


def test_a_repair_is_told_where_the_installation_came_from(cli: CliRunner) -> None:
    artifact = pack(cli.home / "packed", {"big": b"x" * 1000})
    disk = Registry.open(str(cli.home / "my disk"))
    push_artifact(artifact, registry=disk, tags=(), progress=Silent())
    words = ("--registry", "my disk", "--no-check", "--force", "glibc")
    cli.run("install", "demo", *words)
    next(path for path in (cli.home / "envs/demo").rglob("*") if path.is_file()).unlink()
    said = cli.run("verify", "demo", expect=8).stderr
    hint = re.search(r"run `envferry (verify demo --repair [^`]*)`", said)
    assert hint
    assert f"--registry '{cli.home}/my disk'" in hint[1]
    cli.run(*shlex.split(hint[1]))
    assert "1 difference" not in cli.run("list").stdout


def test_only_our_own_options_are_repeated() -> None:
    hint = "`envferry lock x`, `envferry install x --registry y`, `envferry nothing`"
    hint += ", `envferry install --help`"
    places = ["--registry", "z", "--", "--envs-dir", "e"]
    assert with_places(hint, places, envferry) == hint
    assert places_in(["install", "x", "--registry"]) == {}


def test_the_bare_command_names_the_stages_and_the_next_step(cli: CliRunner) -> None:
    said = cli.run().stdout
    assert "lock, build, pack, push" in said
    assert "Next, on a connected machine: envferry import FILE" in said
    cli.write_spec("demo", SPEC)
    assert "\nNext: envferry lock demo\n" in cli.run().stdout
    (cli.home / "specs/demo.conda-lock.yml").write_text("version: 1\n")
    assert "\nNext: envferry build demo, or envferry release demo" in cli.run().stdout
    manifest = manifest_of(cli.home / "demo.tar.zst", b"1")
    install(cli.home / "demo.tar.zst", cli.home / "envs", manifest)
    assert "Installed on this host: demo; see envferry list" in cli.run().stdout


def test_the_one_file_tool_names_no_commands_that_it_has_not(cli: CliRunner) -> None:
    cli.write_spec("demo", SPEC)
    on_host = replace(cli, environ={**cli.environ, "ENVFERRY_RUN_FILE": "/media/usb/envferry.run"})
    (step,) = re.findall(r"^Next.*", on_host.run().stdout, re.MULTILINE)
    install_it = "sh /media/usb/envferry.run install NAME@TAG --registry PLACE"
    assert step == f"Next, on a training host: {install_it}"


def test_a_failed_check_says_how_it_is_installed_anyway(cli: CliRunner) -> None:
    checks = Checks(commands=("false",))
    artifact = installable_artifact(cli.home / "made", {"lib/a": b"x"}, checks=checks)
    disk = Registry.open(str(cli.home / "my disk"))
    push_artifact(artifact, registry=disk, tags=("stable",), progress=Silent())
    words = ("--registry", "my disk", "--force", "glibc")
    said = cli.run("install", "demo@stable", *words, expect=4).stderr
    hint = re.search(r"`envferry (install [^`]*)` installs it anyway", said)
    assert hint
    assert hint[1] == "install demo@stable --no-check --registry 'my disk'"
    cli.run(*shlex.split(hint[1]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ro", ["rollback"]),
        ("lock d", ["demo"]),
        ("install --dr", ["--dry-run"]),
        ("install d", ["demo@latest", "demo@stable"]),
        ("rollback d", ["demo"]),
        ("lock x", []),
    ],
)
def test_completion(cli: CliRunner, words: str, expected: list[str]) -> None:
    """As bash asks: the words so far, and which one is being typed."""
    cli.write_spec("demo", SPEC)
    manifest = manifest_of(cli.home / "demo.tar.zst", b"1")
    install(cli.home / "demo.tar.zst", cli.home / "envs", manifest)
    for tag in ("stable", "latest"):
        record = cli.home / f"artifacts/v1/tags/demo/{manifest.platform}/{tag}"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    line = f"envferry {words}".split()
    asked = {
        "_ENVFERRY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(line),
        "COMP_CWORD": str(len(line) - 1),
    }
    found = CliRunner(home=cli.home, cache=cli.cache, environ={**cli.environ, **asked}).run()
    rows = filter(None, found.stdout.splitlines())
    assert [row.partition(",")[2] for row in rows] == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(cli: CliRunner, shell: str) -> None:
    script = cli.run("completion", shell).stdout
    assert "_ENVFERRY_COMPLETE" in script
    program = find_program(shell)
    if program:
        subprocess.run([program, "-n"], input=script, text=True, check=True)
    cli.run("completion", "tcsh", expect=2)


def test_bash_loads_the_script(cli: CliRunner) -> None:
    line = f'PATH={ENVFERRY.parent}:$PATH; eval "$(envferry completion bash)"; complete -p envferry'
    said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert said.stdout.endswith("envferry\n")
