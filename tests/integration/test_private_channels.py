"""Channels that want a token, from the lock to the registry, which has none of it."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import require
from tests.support.cli_runner import CliRunner
from tests.support.private_channel import (
    BASIC,
    ENTRIES,
    TOKEN,
    PrivateChannel,
    private_channel,
    write_credentials,
)
from tests.support.repodata_channels import write_shards
from tests.support.tiny_channel import TinyPackage, make_channel
from tests.support.where_secrets_are import files_with, spied_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

pytestmark = pytest.mark.container

BWRAP = ("--sandbox", "bwrap")
SECRETS = (TOKEN, BASIC.removeprefix("Basic "))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel with one package that an environment can be made of."""
    require("bwrap", shutil.which("bwrap"))
    package = TinyPackage(name="libone", version="1.0", files=(("share/one", "one"),))
    return make_channel(tmp_path_factory.mktemp("tiny") / "channel", [package])


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    """A user with a home of their own, and a spy in every python."""
    home = tmp_path / "home"
    environ = {
        **spied_home(tmp_path),
        "RATTLER_AUTH_FILE": "",
        "XDG_CACHE_HOME": str(home / "xdg"),
        "ENVFERRY_REGISTRY": str(home / "registry"),
    }
    return CliRunner(home=home, cache=home / "cache", environ=environ)


def write_spec(runner: CliRunner, channel: str) -> Path:
    return runner.write_spec("one", f"name: one\nchannels: ['{channel}']\ndependencies: [libone]\n")


def said(*finished: CompletedProcess[str]) -> str:
    return "".join(item.stdout + item.stderr for item in finished)


def refuse_secrets(tmp_path: Path, text: str, *allowed: Path) -> None:
    """Fail where one is in what was printed, or in any file but those that it belongs in."""
    assert "+ " in text  # -vv shows what is run
    assert not any(secret in text for secret in SECRETS)
    assert (tmp_path / "spied").exists()
    assert files_with(SECRETS, tmp_path, allowed=allowed) == []


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_login_of_the_credentials_file(
    kind: str, runner: CliRunner, tiny: Path, tmp_path: Path
) -> None:
    """Locks, builds and publishes; strangers are told what to do; nothing keeps the secret."""
    with private_channel(tiny, PrivateChannel(kind=kind, breaks=1)) as channel:
        write_spec(runner, channel.url)
        strange = [runner.run("lock", "one", "-vv", expect=9)]
        assert "pixi auth login" in strange[0].stderr
        path = write_credentials(runner.home, {"127.0.0.1": ENTRIES[kind]})
        mine = [runner.run("lock", "one", "-vv", "--json")]
        assert (
            f"{channel.url}/linux-64/libone"
            in (runner.home / "specs/one.conda-lock.yml").read_text()
        )
        kept = path.rename(tmp_path / "kept.json")
        for refusal, code in ((404, 7), (403, 9), (401, 9)):
            channel.refusal = refusal
            strange.append(runner.run("build", "one", *BWRAP, "-vv", expect=code))
            assert "pixi auth login" in strange[-1].stderr
            assert "~/.netrc" in strange[-1].stderr
        path = kept.rename(path)
        # The first answer breaks off: what is asked for then has the login as well.
        mine.append(runner.run("build", "one", *BWRAP, "-vv"))
        assert channel.breaks == 0
        mine.append(runner.run("release", "one", *BWRAP, "-vv"))
        # Another login is told from none.
        write_credentials(runner.home, {"127.0.0.1": {"BearerToken": "0ld"}})
        old = runner.run("lock", "one", "--upgrade", expect=9)
        assert f"the server refuses the login in {path}" in old.stderr
        write_credentials(runner.home, {"127.0.0.1": ENTRIES[kind]})
    assert (runner.home / "registry").is_dir()
    refuse_secrets(tmp_path, said(*strange, *mine, old), path)


def test_a_token_in_the_url_of_a_spec(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    """The lock has none, and the spec lies beside it."""
    with private_channel(tiny, PrivateChannel(kind="conda")) as channel:
        spec = write_spec(runner, channel.url.replace("/team", f"/t/{TOKEN}/team"))
        made = [runner.run("lock", "one", "-vv"), runner.run("build", "one", *BWRAP, "-vv")]
        made.append(runner.run("release", "one", *BWRAP, "-vv"))
        refuse_secrets(tmp_path, said(*made), spec)
        # A token that the server no longer takes.
        spec.write_text(spec.read_text().replace(TOKEN, "0ld"))
        runner.run("lock", "one", expect=9)
        spec.write_text(spec.read_text().replace("0ld", TOKEN))


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("basic", "http://", "http://$HOST_USER:${HOST_TOKEN}@"),
        ("conda", "/team", "/t/$HOST_TOKEN/team"),
    ],
)
def test_a_login_of_environment_variables(
    kind: str, before: str, after: str, runner: CliRunner, tiny: Path, tmp_path: Path
) -> None:
    """As conda has them; no lock has their values, and without them nothing is asked for."""
    with private_channel(tiny, PrivateChannel(kind=kind)) as channel:
        write_spec(runner, channel.url.replace(before, after))
        unset = runner.run("lock", "one", expect=3)
        assert "the environment variable HOST_" in unset.stderr
        assert "is not set" in unset.stderr
        assert channel.requests == []
        runner.environ.update(HOST_USER="me", HOST_TOKEN=TOKEN)
        made = [runner.run("lock", "one", "-vv"), runner.run("build", "one", *BWRAP, "-vv")]
        assert not any("HOST_" in path for path, _ in channel.requests)
    refuse_secrets(tmp_path, said(*made))


def test_a_token_of_the_command_line_is_missed_by_builds(
    runner: CliRunner, tiny: Path, tmp_path: Path
) -> None:
    with private_channel(tiny, PrivateChannel(kind="conda")) as channel:
        write_spec(runner, channel.url)
        given = channel.url.replace("/team", f"/t/{TOKEN}/team")
        locked = runner.run("lock", "one", "-vv", "--channel", given)
        assert f"warning: the lock has no login for {channel.url}" in locked.stderr
        refused = runner.run("build", "one", *BWRAP, "-vv", expect=7)
        write_credentials(runner.home, {"127.0.0.1": ENTRIES["conda"]})
        again = runner.run("lock", "one", "-vv", "--channel", given)
        assert "no login" not in again.stderr
        runner.run("build", "one", *BWRAP)
    assert not any(secret in said(locked, refused, again) for secret in SECRETS)


def test_workers_have_the_lock_alone(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    """A login that stands in the spec is not sent to them: theirs are in files."""
    with private_channel(tiny, PrivateChannel(kind="conda")) as channel:
        spec = write_spec(runner, channel.url.replace("/team", f"/t/{TOKEN}/team"))
        runner.run("lock", "one")
        words = ("release", "one", *BWRAP, "--workers", "1", "-vv")
        refused = runner.run(*words, expect=7)
        assert f"warning: workers have no login for {channel.url}" in refused.stderr
        file = write_credentials(runner.home, {"127.0.0.1": ENTRIES["conda"]})
        released = runner.run(*words)
    refuse_secrets(tmp_path, said(refused, released), spec, file)


def test_shards_are_asked_for_with_the_login(runner: CliRunner, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    for subdir in ("linux-64", "noarch"):
        (folder / subdir).mkdir(parents=True)
        write_shards(folder / subdir, json.loads((tiny / subdir / "repodata.json").read_text()))
        for package in (tiny / subdir).glob("*.conda"):
            (folder / subdir / package.name).symlink_to(package)
    with private_channel(folder, PrivateChannel(kind="conda")) as channel:
        write_spec(runner, channel.url)
        runner.run("lock", "one", expect=9)
        write_credentials(runner.home, {"127.0.0.1": ENTRIES["conda"]})
        runner.run("lock", "one")
        asked = [path for path, _ in channel.requests if path.startswith(f"/t/{TOKEN}/")]
        assert any(path.endswith(".msgpack.zst") and "repodata" not in path for path in asked)


@contextmanager
def elsewhere(folder: Path, seen: list[tuple[str, dict[str, str]]]) -> Iterator[str]:
    """Serve a folder to everybody on another host; note what is asked for."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            """Keep the tests' output to what failed."""

        def do_GET(self) -> None:
            seen.append((self.path, dict(self.headers.items())))
            super().do_GET()

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("kind", ENTRIES)
def test_another_host_gets_nothing(kind: str, runner: CliRunner, tiny: Path) -> None:
    """Where packages are redirected to a server of files."""
    seen: list[tuple[str, dict[str, str]]] = []
    with elsewhere(tiny, seen) as other:
        manners = PrivateChannel(kind=kind, packages_at=other)
        with private_channel(tiny, manners) as channel:
            write_spec(runner, channel.url)
            write_credentials(runner.home, {"127.0.0.1": ENTRIES[kind]})
            runner.run("lock", "one")
            runner.run("build", "one", *BWRAP)
    assert [path for path, _ in seen] == ["/linux-64/libone-1.0-0.conda"]
    assert not any(secret in str(seen) for secret in SECRETS)
    assert "Authorization" not in seen[0][1]


@pytest.mark.parametrize("is_in_spec", [False, True])
def test_a_redirect_that_would_carry_the_token_off(
    runner: CliRunner, tiny: Path, *, is_in_spec: bool
) -> None:
    """As a web server's `return 302 https://other$request_uri` does."""
    seen: list[tuple[str, dict[str, str]]] = []
    with elsewhere(tiny, seen) as other:
        manners = PrivateChannel(kind="conda", packages_at=f"{other}/t/{TOKEN}/team/channel")
        with private_channel(tiny, manners) as channel:
            given = channel.url.replace("/team", f"/t/{TOKEN}/team")
            write_spec(runner, given if is_in_spec else channel.url)
            write_credentials(runner.home, {} if is_in_spec else {"127.0.0.1": ENTRIES["conda"]})
            runner.run("lock", "one")
            refused = runner.run("build", "one", *BWRAP, "-vv", expect=9)
    assert f"127.0.0.1 redirects to {other} with the token of its channel" in refused.stderr
    assert TOKEN not in said(refused)
    assert seen == []


def test_a_credentials_file_that_is_broken(runner: CliRunner, tiny: Path) -> None:
    with private_channel(tiny, PrivateChannel(kind="conda")) as channel:
        write_spec(runner, channel.url)
        path = write_credentials(runner.home, {})
        path.write_text(f'{{"127.0.0.1": {{"CondaToken": "{TOKEN}"')
        refused = runner.run("lock", "one", expect=3)
    assert f"the credentials file {path} is not JSON" in refused.stderr
    assert "pixi auth login" in refused.stderr
    assert TOKEN not in refused.stderr
