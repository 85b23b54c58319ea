"""Settings files and variables: what wins, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envferry.base.file_owners import deciding_folders
from envferry.base.settings_files import DEFAULT, read_settings
from envferry.base.settings_table import SETTINGS
from envferry.config import Settings
from envferry.errors import SpecError
from tests.support.cli_runner import CliRunner

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


def written(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_later_places_win(tmp_path: Path) -> None:
    text = 'registry = "s3://site/prod"\nlink = "copy"\nmin_speed = 5\n'
    site = written(tmp_path / "site.toml", f"# of the site\n{text}")
    own = written(tmp_path / "own.toml", 'link = "hardlink"\nenvs_dir = "/data/envs"\n')
    told = read_settings({"ENVFERRY_ENVS_DIR": "/v"}, [site, own, tmp_path / "missing.toml"])
    assert (told["registry"].value, told["registry"].source) == ("s3://site/prod", f"{site}:2")
    assert (told["link"].value, told["link"].source) == ("hardlink", f"{own}:1")
    assert (told["envs_dir"].value, told["envs_dir"].source) == ("/v", "ENVFERRY_ENVS_DIR")
    assert (told["min_speed"].value, told["cache"].source) == (5, DEFAULT)


def test_a_file_decides_as_variables_do(tmp_path: Path) -> None:
    text = """
        registry = "/srv/envs"
        cache = "/var/cache/envferry"
        trusted_dir = "/etc/keys"
        require_signatures = true
        umask = "027"
        post_install_hooks = ["/etc/hook", "~/hook"]
        kernel_dir = "/k"
        modulefile_dir = "/m"
        allow_races = true
    """
    path = written(tmp_path / "config.toml", text)
    here = Settings.from_environ({}, [path])
    assert (here.registry, here.cache_dir) == ("/srv/envs", Path("/var/cache/envferry"))
    assert (here.trusted_dir, here.umask) == (Path("/etc/keys"), 0o027)
    assert here.hooks == ("/etc/hook", str(Path("~/hook").expanduser()))
    assert (here.kernel_dir, here.modulefile_dir) == (Path("/k"), Path("/m"))
    assert here.allow_races
    assert here.signatures_required_by() == f"{path}:5"


def test_nobody_takes_back_that_signatures_are_required(tmp_path: Path) -> None:
    site = written(tmp_path / "site.toml", "require_signatures = true")
    own = written(tmp_path / "own.toml", "require_signatures = false")
    environ = {"ENVFERRY_REQUIRE_SIGNATURES": "0"}
    assert Settings.from_environ(environ, [site, own]).requirement == f"{site}:1"
    assert Settings.from_environ({"ENVFERRY_REQUIRE_SIGNATURES": "1"}, [own]).requirement


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nregistri = 1", r":3: unknown setting `registri`, perhaps you meant `registry`"),
        ('[hooks]\nafter = "x"', r":1: unknown setting `hooks`"),
        ('sign_key = "x"', r":1: unknown setting `sign_key`"),
        ('require_signatures = "yes"', r":1: require_signatures is 'yes', expected true or false"),
        ("min_speed = true", r":1: min_speed is True, expected a number"),
        ('link = "soft"', r":1: link is 'soft', expected one of auto, reflink"),
        ('umask = "99"', r":1: umask is '99', expected a umask"),
        ("umask = 22", r":1: umask is 22, expected a quoted string"),
        ('envs_dir = "envs"', r":1: envs_dir is 'envs', expected an absolute path"),
        ('registry = "./artifacts"', r":1: registry is './artifacts', expected an absolute path"),
        ('post_install_hooks = "x"', r":1: post_install_hooks is 'x', expected a list of paths"),
        ('post_install_hooks = ["x"]', r":1: post_install_hooks is 'x', expected an absolute path"),
        ("registry = ", r"is not TOML"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_settings({}, [written(tmp_path / "config.toml", text)])


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"registry = '\xff'")
    with pytest.raises(SpecError, match="is not UTF-8"):
        read_settings({}, [path])


@pytest.mark.parametrize(
    ("name", "text"), [("UMASK", "rwx"), ("LINK", "soft"), ("ALLOW_RACES", "maybe")]
)
def test_a_variable_that_means_nothing(name: str, text: str) -> None:
    with pytest.raises(SpecError, match=f"ENVFERRY_{name} is '{text}', expected "):
        read_settings({f"ENVFERRY_{name}": text}, [])


def test_a_misspelled_variable_is_refused() -> None:
    for name in ("ENVFERRY_REQUIRE_SIGNATURE", "ENVFERRY_REQUIRE_SIGNED"):
        with pytest.raises(SpecError, match=f"the variable {name} is not a setting") as caught:
            read_settings({name: "1"}, [])
        assert "did you mean `ENVFERRY_REQUIRE_SIGNATURES`?" in str(caught.value.hint)
    for prefix in ("ENVFERY", "ENV_FERRY", "envferry", "EnvFerry", "ENVFFERRY"):
        with pytest.raises(SpecError, match="is not a setting") as caught:
            read_settings({f"{prefix}_REQUIRE_SIGNATURES": "1"}, [])
        assert "did you mean `ENVFERRY_REQUIRE_SIGNATURES`?" in str(caught.value.hint)
    others = ("ENVOY_REGISTRY", "ENV_CACHE", "REGISTRY", "_REGISTRY", "SERVER_CONFIG", "ENVFERY")
    assert read_settings(dict.fromkeys(others, "1"), [])
    assert read_settings({"ENVFERRY_IMAGE": "a site's own", "ENVFERRY_REQUIRE": "s3"}, [])


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "config.toml", "", 0o666)
    with pytest.raises(SpecError, match="refused: it is writable by every user"):
        read_settings({}, [path])


def test_a_file_that_everybody_may_replace_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "open/config.toml", "")
    path.parent.chmod(0o777)
    with pytest.raises(SpecError, match="where every user can replace it"):
        read_settings({}, [path])


def test_a_link_that_everybody_may_replace_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "own/config.toml", "")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/link").symlink_to(path)
    (tmp_path / "open/folder").symlink_to("../own")
    (tmp_path / "alias").symlink_to("open/folder")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("open/link", "open/folder/config.toml", "alias/config.toml"):
        with pytest.raises(SpecError, match=f"lies in {tmp_path}/open, where every user"):
            read_settings({}, [tmp_path / name])
    (tmp_path / "open").chmod(0o755)
    assert read_settings({}, [tmp_path / "alias/../own/config.toml"])
    assert tmp_path in deciding_folders(tmp_path / "loop")


def test_a_folder_that_everybody_may_replace_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "open/envferry/config.toml", "")
    path.parent.parent.chmod(0o777)
    with pytest.raises(
        SpecError, match=f"lies in {tmp_path}/open, where every user can replace it"
    ):
        read_settings({}, [path])
    path.parent.parent.chmod(0o1777)
    assert read_settings({}, [path])


WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
"""Root for whom modes and owners count, as for any user."""
READ = "import sys, pathlib; from envferry.base.settings_files import read_settings as read; "
READ += "print(read({}, [pathlib.Path(sys.argv[1])])['link'].value)"


@as_root
def test_settings_of_another_users_home_are_passed_over(tmp_path: Path) -> None:
    """As after `su USER`, which keeps HOME; a file that is there and closed is an error."""
    path = written(tmp_path / "home/config.toml", 'link = "copy"', 0o600)
    argv = (*WITHOUT_POWERS, sys.executable, "-c", READ, str(path))
    os.chown(path, 1000, 0)
    closed = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "SpecError: cannot read the settings in" in closed.stderr
    os.chown(path.parent, 1000, 0)
    path.parent.chmod(0o700)
    assert subprocess.check_output(argv, text=True) == "auto\n"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.mkdir()
    with pytest.raises(SpecError, match="cannot read the settings"):
        read_settings({}, [path])
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(SpecError, match="is not a file"):
        read_settings({}, [path])


@as_root
def test_root_obeys_nobody_else(tmp_path: Path) -> None:
    path = written(tmp_path / "config.toml", "")
    os.chown(path, 1000, 0)
    with pytest.raises(SpecError, match="belongs to the user 1000"):
        read_settings({}, [path])
    os.chown(path, 0, 1000)
    assert read_settings({}, [path])
    path.chmod(0o664)
    with pytest.raises(SpecError, match="can be written by the group 1000"):
        read_settings({}, [path])
    path.chmod(0o644)
    os.chown(tmp_path, 1000, 0)
    with pytest.raises(SpecError, match="which belongs to the user 1000"):
        read_settings({}, [path])


def test_secrets_are_shown_nowhere() -> None:
    told = read_settings({"ENVFERRY_SIGN_KEY": "-----BEGIN PRIVATE KEY-----"}, [])
    assert told["sign_key"].value == "(set)"


def test_the_command_shows_who_says_what(tmp_path: Path) -> None:
    path = written(tmp_path / "xdg/envferry/config.toml", 'link = "copy"\n')
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "ENVFERRY_REGISTRY": "s3://u:p@h/x"}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    lines = [line.split() for line in cli.run("config").stdout.splitlines()]
    assert ["link", "copy", f"{path}:1"] in lines
    assert ["registry", "s3://h/x", "ENVFERRY_REGISTRY"] in lines
    assert ["min_speed", "1024", "default"] in lines
    facts = json.loads(cli.run("config", "--json").stdout)
    assert set(facts["settings"]) == {one.key for one in SETTINGS}
    written(path, "\nlinc = 1\n")
    assert f"{path}:2: unknown setting `linc`" in cli.run("list", expect=3).stderr


def test_a_umask_of_the_settings_counts(tmp_path: Path) -> None:
    environ = {"ENVFERRY_UMASK": "077", "HOME": str(tmp_path)}
    script = (
        "import os, sys; from envferry.cli.main import run; run(['config', '-q']);"
        "print(os.umask(0))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.splitlines()[-1] == str(0o077)
