"""Who published a pip package: asked of an index, verified, recorded, and compared (PEP 740)."""

from __future__ import annotations

import http.server
import json
import logging
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.config import Settings
from envferry.errors import IntegrityError, NotFound, SpecError
from envferry.lock.existing_lock import check_lock
from envferry.lock.lock_options import LockOptions
from envferry.lock.pip.wheel_attestations import AttestedFile, Verdict, VerifyRequest, verify
from envferry.lock.stage import lock_spec
from envferry.models import FileProvenance, Publisher
from envferry.progress import Silent
from envferry.specs.locks import read_lock
from envferry.specs.publishers import compare_publishers, lock_warnings
from envferry.specs.reading import read_spec
from tests.support.builds import file_hash
from tests.support.cli_runner import CliRunner
from tests.support.sigstore import Sigstore
from tests.support.tiny_channel import make_channel, python_packages
from tests.support.web_server import web_server
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.models import Lock

SHA = "5" * 64
WHEEL = "tiny-1.0-py3-none-any.whl"
PAGE_TYPE = "application/vnd.pypi.simple.v1+json"
ACME = Publisher(kind="GitHub", repository="acme/tiny", workflow="release.yml", environment="pypi")


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_channel(tmp_path_factory.mktemp("channels") / "tiny", python_packages())


@pytest.fixture(scope="module")
def sigstore() -> Sigstore:
    return Sigstore()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this machine's settings and caches takes part."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("ENVFERRY_CACHE", str(home / "envferry"))
    monkeypatch.setenv("UV_CACHE_DIR", str(home / "uv"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("NETRC", "UV_INDEX", "UV_DEFAULT_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def trusted(sigstore: Sigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trust the Sigstore of the tests."""
    path = tmp_path / "trusted_root.json"
    path.write_text(sigstore.trusted_root())
    monkeypatch.setenv("ENVFERRY_SIGSTORE_ROOT", str(path))
    return path


def verdicts(root: Path | None, *cases: tuple[object, str]) -> list[Verdict]:
    """Verify provenance objects for a file of a SHA-256 each."""
    files = tuple(
        AttestedFile(name="tiny", file_name=WHEEL, sha256=sha, provenance=json.dumps(provenance))
        for provenance, sha in cases
    )
    return [*verify(VerifyRequest(files=files, trusted_root=str(root) if root else None))]


def verdict(provenance: object, root: Path | None) -> tuple[tuple[Publisher, ...], str, str]:
    (found,) = verdicts(root, (provenance, SHA))
    return found.publishers, found.wrong, found.unreadable


def test_a_published_file(sigstore: Sigstore, trusted: Path) -> None:
    provenance = sigstore.provenance(WHEEL, SHA, "acme/tiny")
    assert verdict(provenance, trusted) == ((ACME,), "", "")
    assert str(ACME) == "GitHub acme/tiny (release.yml, environment pypi)"


def test_nobody_else_is_trusted(sigstore: Sigstore, trusted: Path, tmp_path: Path) -> None:
    provenance = sigstore.provenance(WHEEL, SHA, "acme/tiny")
    assert "chain" in verdict(provenance, None)[1]
    other = tmp_path / "other.json"
    other.write_text(Sigstore().trusted_root())
    assert verdict(provenance, other)[1]


def test_false_attestations(sigstore: Sigstore, trusted: Path) -> None:
    good = sigstore.provenance(WHEEL, SHA, "acme/tiny")
    other = sigstore.provenance("tiny-2.0-py3-none-any.whl", SHA, "acme/tiny")
    borrowed = sigstore.provenance(WHEEL, SHA, "evil/tiny")
    borrowed["attestation_bundles"][0]["publisher"]["repository"] = "acme/tiny"
    workflow = sigstore.provenance(WHEEL, SHA, "acme/tiny", "nightly.yml")
    workflow["attestation_bundles"][0]["publisher"]["workflow"] = "release.yml"
    bare = sigstore.provenance(WHEEL, SHA, "acme/tiny")
    bare["attestation_bundles"][0]["attestations"] = []
    unlogged = sigstore.provenance(WHEEL, SHA, "acme/tiny")
    (bundle,) = unlogged["attestation_bundles"]
    material = bundle["attestations"][0]["verification_material"]
    material["transparency_entries"][0]["inclusionProof"]["rootHash"] = "AAAA"
    formless = {"attestation_bundles": [{"publisher": {"kind": "GitHub"}}]}
    cases: tuple[tuple[object, str, str], ...] = (
        (good, "6" * 64, "digest"),
        (other, SHA, "distribution name"),
        (borrowed, SHA, "evil/tiny"),
        (workflow, SHA, "release.yml"),
        (bare, SHA, "no attestation"),
        (unlogged, SHA, "inclusion proof"),
        ([], SHA, "not of the form"),
        ({}, SHA, "not of the form"),
        (formless, SHA, "not of the form"),
    )
    found = verdicts(trusted, *((provenance, sha) for provenance, sha, _ in cases))
    for item, (_, _, words) in zip(found, cases, strict=True):
        assert words in item.wrong
        assert (item.publishers, item.unreadable) == ((), "")


def test_what_is_newer_than_we_are_is_not_called_wrong(sigstore: Sigstore, trusted: Path) -> None:
    later = {**sigstore.provenance(WHEEL, SHA, "acme/tiny"), "version": 2}
    strange = sigstore.provenance(WHEEL, SHA, "acme/tiny")
    strange["attestation_bundles"][0]["publisher"] = {"kind": "Forgejo", "repository": "a/b"}
    found = verdicts(trusted, (later, SHA), (strange, SHA))
    assert [(item.wrong, item.unreadable) for item in found] == [
        ("", "its provenance has version 2, this envferry reads 1"),
        ("", "publishers of the kind Forgejo are not known"),
    ]


def test_a_trusted_root_that_is_none(tmp_path: Path) -> None:
    for content in (None, "nonsense"):
        path = tmp_path / "root.json"
        if content:
            path.write_text(content)
        with pytest.raises(SpecError, match=r"trusted root") as caught:
            verdict({"attestation_bundles": []}, path)
        assert "ENVFERRY_SIGSTORE_ROOT" in caught.value.hint
    assert Settings.from_environ({"ENVFERRY_SIGSTORE_ROOT": "/x"}).sigstore_root is not None


@dataclass
class Index:
    """A package index: wheels of `tiny`, some of them attested."""

    root: Path
    sigstore: Sigstore
    attested: dict[str, object] = field(default_factory=dict)
    """Provenance by file name."""
    asked: list[str] = field(default_factory=list)
    is_json: bool = True
    missing: bool = False
    """Whether provenance that the pages name is not there."""
    url: str = ""

    def offer(self, version: str, repository: str | None, *, lie: bool = False) -> None:
        """Add a release."""
        stem = f"tiny-{version}-py3-none-any"
        path = make_wheel(self.root, stem)
        if repository:
            digest = "9" * 64 if lie else file_hash(path)
            self.attested[path.name] = self.sigstore.provenance(path.name, digest, repository)

    def page(self) -> bytes:
        """Return the page of `tiny`."""
        files = sorted(self.root.glob("*.whl"))
        if not self.is_json:
            links = [f'<a href="../../{f.name}#sha256={file_hash(f)}">{f.name}</a>' for f in files]
            return "\n".join(["<html><body>", *links, "</body></html>"]).encode()
        entries = [
            {
                "filename": file.name,
                "url": f"{self.url}/{file.name}",
                "hashes": {"sha256": file_hash(file)},
                "provenance": f"/provenance/{file.name}" if file.name in self.attested else None,
            }
            for file in files
        ]
        page = {"meta": {"api-version": "1.3"}, "name": "tiny", "files": entries}
        return json.dumps(page).encode()


@pytest.fixture
def index(tmp_path: Path, sigstore: Sigstore, trusted: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index", sigstore)
    made.root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Keep the tests' output to what failed."""

        def do_GET(self) -> None:
            made.asked.append(f"{self.path} {self.headers.get('User-Agent', '')}")
            if self.path == "/simple/tiny/":
                kind = PAGE_TYPE if made.is_json else "text/html"
                self.answer(made.page(), kind)
            elif self.path.startswith("/provenance/") and not made.missing:
                found = made.attested[self.path.rpartition("/")[2]]
                self.answer(json.dumps(found).encode(), "application/json")
            else:
                super().do_GET()

        def answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-cache")
            self.end_headers()
            self.wfile.write(data)

    with web_server(made.root, Handler) as url:
        made.url = url
        yield made


@pytest.fixture
def spec_path(tmp_path: Path, channel: Path, index: Index) -> Path:
    path = tmp_path / "torch.yml"
    path.write_text(
        f"channels: ['{channel}']\ndependencies:\n- python=3.10\n"
        f"- pip:\n  - --index-url {index.url}/simple\n  - tiny\n"
    )
    return path


def lock(path: Path, **options: Any) -> Lock:
    chosen = LockOptions(platforms=("linux-64",), **options)
    return lock_spec(read_spec(path), options=chosen, progress=Silent())


def ours(index: Index) -> list[str]:
    """Return what envferry itself asked for, and forget it."""
    found = [line.split()[0] for line in index.asked if line.endswith(" envferry")]
    index.asked.clear()
    return found


def test_the_publisher_is_in_the_lock_and_stays(index: Index, spec_path: Path) -> None:
    index.offer("1.0", "acme/tiny")
    made = lock(spec_path)
    assert made.provenance == {"linux-64": {"tiny": FileProvenance(publishers=(ACME,))}}
    assert ours(index) == ["/simple/tiny/", f"/provenance/{WHEEL}"]
    data = made.path.read_bytes()
    assert b"acme/tiny" in data
    lock(spec_path)
    assert made.path.read_bytes() == data
    assert ours(index) == [], "what is published stays as it is"
    assert read_lock(made.path).provenance == made.provenance


def test_another_publisher_is_a_warning_until_it_is_accepted(
    index: Index, spec_path: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    index.offer("1.0", "acme/tiny")
    first = lock(spec_path)
    kept = shutil.copy(first.path, tmp_path / "first.conda-lock.yml")
    index.offer("2.0", "evil/tiny")
    with caplog.at_level(logging.WARNING):
        second = lock(spec_path, upgrade=True)
    words = (
        "tiny (linux-64) has another publisher: GitHub evil/tiny (release.yml, environment pypi); "
        "it was GitHub acme/tiny (release.yml, environment pypi)"
    )
    assert words in caplog.messages
    assert [*lock_warnings(check_lock(read_spec(spec_path)))] == [words]
    assert [*compare_publishers(first, second)] == [words]
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    for command in (("lock", spec_path, "--check"), ("diff", kept, second.path)):
        said = runner.run(*command).stderr
        assert words in " ".join(said.split()), said
    again = lock(spec_path)
    assert [*lock_warnings(again)] == [words], "the file that it is about is still locked"
    accepted = lock(spec_path, updated=("tiny",))
    assert [*lock_warnings(accepted)] == []


def test_the_same_publisher_is_no_warning(
    index: Index, spec_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index.offer("1.0", "acme/tiny")
    lock(spec_path)
    index.offer("2.0", "acme/tiny")
    made = lock(spec_path, upgrade=True)
    assert made.packages[-1].version == "2.0"
    assert [*lock_warnings(made)] == []
    assert not [text for text in caplog.messages if "tiny (" in text]


def test_a_publisher_that_vanished(index: Index, spec_path: Path) -> None:
    index.offer("1.0", "acme/tiny")
    lock(spec_path)
    index.offer("2.0", None)
    made = lock(spec_path, upgrade=True)
    assert [*lock_warnings(made)] == [
        "tiny (linux-64) has no attestation any more; it was published by "
        "GitHub acme/tiny (release.yml, environment pypi)"
    ]


def test_a_false_attestation_is_refused_and_the_lock_stays(index: Index, spec_path: Path) -> None:
    index.offer("1.0", "acme/tiny")
    made = lock(spec_path)
    data = made.path.read_bytes()
    index.offer("2.0", "acme/tiny", lie=True)
    with pytest.raises(IntegrityError, match=r"tiny-2\.0-py3-none-any\.whl is wrong: .*digest"):
        lock(spec_path, upgrade=True)
    assert made.path.read_bytes() == data


@pytest.mark.parametrize("is_json", [True, False], ids=["json", "html"])
def test_nothing_is_said_of_indexes_without_provenance(
    index: Index, spec_path: Path, caplog: pytest.LogCaptureFixture, is_json: bool
) -> None:
    index.is_json = is_json
    index.offer("1.0", None)
    made = lock(spec_path)
    assert made.provenance == {"linux-64": {"tiny": FileProvenance()}}
    assert not [text for text in caplog.messages if "attest" in text]


def test_provenance_that_is_not_there_is_named_and_asked_for_again(
    index: Index, spec_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index.offer("1.0", "acme/tiny")
    index.missing = True
    assert lock(spec_path).provenance == {}
    assert "which does not exist" in caplog.text
    index.missing = False
    assert lock(spec_path).provenance["linux-64"]["tiny"].publishers == (ACME,)


def test_offline_nobody_is_asked_and_nothing_forgotten(index: Index, spec_path: Path) -> None:
    index.offer("1.0", "acme/tiny")
    index.offer("2.0", "evil/tiny")
    text = spec_path.read_text()
    spec_path.write_text(text.replace("- tiny", "- tiny<2"))
    lock(spec_path)
    spec_path.write_text(text.replace("- tiny", "- tiny>=2"))
    first = lock(spec_path, dry_run=True)  # uv's cache has it from here on
    assert first.provenance["linux-64"]["tiny"].before == (ACME,)
    ours(index)
    made = lock(spec_path, offline=True)
    assert index.asked == []
    assert made.provenance["linux-64"] == {"tiny": FileProvenance(before=(ACME,), unasked=True)}
    made = lock(spec_path)
    (entry,) = made.provenance["linux-64"].values()
    assert (entry.publishers[0].repository, entry.before) == ("evil/tiny", (ACME,))


def test_offline_the_pip_half_needs_a_cache(index: Index, spec_path: Path) -> None:
    index.offer("1.0", None)
    with pytest.raises(NotFound, match="the cache does not hold all that the lock needs") as caught:
        lock(spec_path, offline=True)
    assert "without `--offline`" in caught.value.hint
    assert (index.asked, spec_path.with_name("torch.conda-lock.yml").exists()) == ([], False)
    online = lock(spec_path)
    online.path.unlink()
    index.asked.clear()
    assert lock(spec_path, offline=True).packages == online.packages
    assert index.asked == []


def test_locks_without_it_are_read_as_before(index: Index, spec_path: Path) -> None:
    index.offer("1.0", "acme/tiny")
    made = lock(spec_path)
    text = made.path.read_text()
    lines = [line for line in text.splitlines() if "envferry_publishers" not in line]
    made.path.write_text("\n".join([*lines, ""]))
    assert read_lock(made.path).provenance == {}
    again = lock(spec_path)
    assert again.path.read_text() == text


def test_publishers_are_typed() -> None:
    entry = FileProvenance(publishers=(ACME,), before=(Publisher(kind="Google", identity="a@b"),))
    assert msgspec.json.decode(msgspec.json.encode(entry), type=FileProvenance) == entry
    assert str(entry.before[0]) == "Google a@b"
