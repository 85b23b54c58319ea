"""Git servers that demand a login: it is on nobody's command line, and not in the lock."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.process import run
from tests.support.cli_runner import CliRunner
from tests.support.git_sources import SETUP, commit, one_source, write
from tests.support.guarded_server import Guarded, guarding

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.container, pytest.mark.network]

PASSWORD = "pa55/of.git"
IN_URL = "pa55%2Fof.git"


class Watching(Guarded):
    """Notes the command line of every process of this machine whenever it is asked."""

    seen: set[str]

    def do_GET(self) -> None:  # noqa: N802  (its base's name)
        """Look around, then answer."""
        self.seen.update(command_lines())
        super().do_GET()


def command_lines() -> Iterator[str]:
    """Yield what everybody can read of each process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def test_passwords_of_git_are_on_no_command_line(demo_runner: CliRunner, tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"setup.py": SETUP, "gitted.py": ""})
    commit(source)
    bare = tmp_path / "served/private/gitted.git"
    run(["git", "clone", "-q", "--bare", source, bare])
    run(["git", "-C", bare, "update-server-info"])
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ={"HOME": str(tmp_path)})
    Watching.seen = set()
    with guarding(tmp_path / "served", {"private": f"me:{PASSWORD}"}, Watching) as port:
        url = f"http://127.0.0.1:{port}/private/gitted.git"
        with_login = url.replace("127", f"me:{IN_URL}@127", 1)
        runner.write_spec("secret", one_source(demo_runner, f"gitted @ git+{with_login}@main"))
        told = runner.run("lock", "secret", "-v").stderr
        text = (tmp_path / "specs/secret.conda-lock.yml").read_text()
        runner.run("build", "secret")
        # Who builds elsewhere needs the login, too: in netrc, for one.
        other = replace(runner, cache=tmp_path / "other")
        assert ".netrc" in other.run("build", "secret", expect=9).stderr
        netrc = tmp_path / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
        netrc.chmod(0o600)
        other.run("build", "secret")
    assert f"git+{url}@" in text
    assert [line for line in Watching.seen if "remote-http" in line and url in line]
    for secret in (PASSWORD, IN_URL):
        assert not [line for line in Watching.seen if secret in line]
        assert secret not in text + told
