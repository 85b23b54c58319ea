"""`install --unless-current`: what records alone settle, and what they do not."""

from __future__ import annotations

import http.server
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.base.files import write_bytes
from envferry.base.json import to_json
from envferry.errors import IntegrityError
from envferry.install.plan import InstallOptions
from envferry.install.records.env_home import EnvHome
from envferry.install.records.last_results import LastChecked, note_checked
from envferry.install.stage import install_artifact
from envferry.models import Checks, SystemRequirements
from envferry.names import current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.accepted_sources import opened_archive, origin_of, settled
from envferry.trust.host_trust import Trust
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.keys import OURS, THEIRS, signer, trusting
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.installation import Installation

REF = "demo@stable"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A registry in a directory, and a host."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder / "registry")

    @property
    def options(self) -> InstallOptions:
        return InstallOptions(envs_dir=self.folder / "envs")

    @property
    def places(self) -> tuple[str, ...]:
        """The options of a command that say where the registry and the environments are."""
        return ("--registry", self.url, "--envs-dir", str(self.options.envs_dir))

    @property
    def home(self) -> EnvHome:
        return EnvHome.of(self.options.envs_dir, "demo")

    def publish(self, version: str, **fields: Any) -> str:
        """Publish a signed version, move the signed tag to it; return its id."""
        contents = {"bin/tool": f"#!/bin/sh\necho {version}\n".encode()}
        fields.setdefault("checks", Checks(commands=(f"echo ran >> {self.folder}/checks",)))
        artifact = installable_artifact(self.folder / "dist", contents, **fields)
        registry = Registry.open(self.url, signer=signer(OURS))
        registry.publish(artifact, progress=Silent())
        registry.move_tag("demo", current_platform(), "stable", artifact.manifest.id)
        return artifact.manifest.id

    def install(self, trust: Trust) -> None:
        """Install as the command does."""
        with opened_archive(REF, self.url, trust) as (source, manifest):
            origin = origin_of(REF, self.url, trust.signers_of(manifest))
            options = msgspec.structs.replace(self.options, origin=origin)
            install_artifact(source, manifest, options=options, progress=Silent())

    def settled(self, ref: str = REF, trust: Trust | None = None, **changes: Any) -> str | None:
        """Return the id that is settled."""
        options = msgspec.structs.replace(self.options, **changes)
        there = settled(ref, self.url, trust or trusting(OURS), options)
        return there.id if there else None

    def rewrite(self, **changes: Any) -> None:
        """Change the record of what is current."""
        record: Installation = self.home.installation(self.home.current_id() or "")
        changed = msgspec.structs.replace(record, **changes)
        write_bytes(self.home.record(record.id), to_json(changed))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A host that has demo@stable."""
    made = Site(folder=tmp_path)
    made.publish("one")
    made.install(trusting(OURS))
    return made


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    """A shell on that host."""
    return CliRunner(home=tmp_path, cache=tmp_path / "cache")


def test_what_a_tag_or_an_id_means_is_current(site: Site) -> None:
    id_ = site.home.current_id()
    assert site.settled() == id_
    assert site.settled(f"demo@{id_}") == id_
    other = site.publish("two")
    assert site.settled() is None, "the tag has moved"
    assert site.settled(f"demo@{other}") is None
    assert site.settled("other@stable") is None


def test_who_is_trusted_now_decides(site: Site) -> None:
    id_ = site.home.current_id()
    assert site.settled(f"demo@{id_}", trusting(THEIRS)) is None
    assert site.settled(f"demo@{id_}", trusting(OURS, THEIRS)) == id_
    assert site.settled(f"demo@{id_}", Trust()) == id_, "no key is asked for here"
    site.rewrite(origin=None)
    assert site.settled() is None, "nobody knows who signed it"
    with pytest.raises(IntegrityError):
        # The signature of a tag counts each time, as ever.
        site.install(trusting(THEIRS))


def test_what_is_in_doubt_is_not_settled(site: Site) -> None:
    id_ = site.home.current_id() or ""
    note_checked(site.home, id_, LastChecked(time="2026-01-01T00:00:00Z", passed=False, failed="x"))
    assert site.settled() is None, "its checks failed when they ran last"
    assert site.settled(check=False) is None, "a failure counts, whoever asks"
    site.home.state(id_).unlink()
    assert site.settled() is None, "nobody knows whether they passed"
    assert site.settled(check=False) == id_, "they are not asked for"
    note_checked(site.home, id_, LastChecked(time="2026-01-01T00:00:00Z", passed=True))
    assert site.settled() == id_
    assert site.settled(prefix="/srv/elsewhere") is None
    assert site.settled(modulefile_dir=site.folder / "modules") is None
    site.rewrite(requirements=SystemRequirements(glibc="99.0"))
    assert site.settled() is None, "this machine lacks something"
    assert site.settled(force=("glibc",)) == id_
    site.home.tree(id_).rename(site.folder / "gone")
    assert site.settled(force=("glibc",)) is None


def test_it_asks_for_the_tag_and_for_nothing_else(site: Site, runner: CliRunner) -> None:
    asked: list[str] = []

    class Noting(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(f"{self.command} {self.path}")

    site.folder.joinpath("checks").unlink()
    with web_server(site.folder / "registry", Noting) as url:
        arguments = ("install", REF, "--registry", url, "--envs-dir", site.options.envs_dir)
        said = runner.run(*arguments, "--unless-current")
        assert "demo@" in said.stdout
        assert [line.rpartition("/")[2] for line in asked] == ["stable"], asked
        assert not (site.folder / "checks").exists()
        runner.run(*arguments)
        assert (site.folder / "checks").read_text() == "ran\n", "without it, checks run each time"
        other = site.publish("two")
        runner.run(*arguments, "--unless-current")
    assert site.home.current_id() == other


def test_checks_that_are_left_out_run_when_they_are_asked_for(
    site: Site, runner: CliRunner
) -> None:
    """What never ran is settled for who does not ask for it, and for nobody else."""
    ran = site.folder / "checks"
    site.publish("two")
    ran.unlink()
    install = ("install", REF, *site.places, "--unless-current")
    for _ in range(2):
        assert "demo@" in runner.run(*install, "--no-check").stdout
        assert not ran.exists()
    assert site.settled(trust=Trust(), check=False) == site.home.current_id()
    for _ in range(2):
        runner.run(*install)
        assert ran.read_text() == "ran\n", "once: then it is known that they passed"


def test_a_failed_check_is_not_forgotten_by_who_leaves_checks_out(
    site: Site, runner: CliRunner
) -> None:
    """Not before it is current, where another program's installation failed, nor afterwards."""
    before = site.home.current_id()
    mended = site.folder / "mended"
    other = site.publish("two", checks=Checks(commands=(f"test -e {mended}",)))
    install = ("install", REF, *site.places)
    assert "failed" in runner.run(*install, expect=4).stderr
    said = runner.run(*install, "--unless-current", "--no-check", expect=4)
    assert "failed on this host" in said.stderr
    assert site.home.current_id() == before
    # Of old installations, those that never became current are removed first.
    assert other in runner.run("remove", "demo", "--keep", "1", *site.places[2:]).stdout
    runner.run(*install, "--unless-current", "--no-check", expect=4)
    assert site.home.current_id() == before
    # The operator's word at the host: installed anyway. The next program still looks again.
    runner.run(*install, "--no-check")
    assert site.home.current_id() == other
    runner.run(*install, "--unless-current", "--no-check", expect=4)
    mended.touch()
    runner.run(*install, "--unless-current", "--no-check")
    assert site.settled(trust=Trust()) == other, "they ran, and passed"
