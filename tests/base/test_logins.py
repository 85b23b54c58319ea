"""Which login a request gets, and which never does."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from envferry.base.channel_credentials import credentials_paths
from envferry.base.logins import Logins, channel_key
from envferry.base.secret import Secret
from envferry.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

HOST = "https://conda.example.org/team/linux-64/a.conda"


def write(path: Path, entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps(entries))
    path.chmod(0o600)
    return path


def bearer(token: str) -> dict[str, str]:
    return {"BearerToken": token}


def logins(*files: Path, netrc: Path | None = None, **indexes: str) -> Logins:
    secrets = {place.replace("_", "."): Secret(text) for place, text in indexes.items()}
    return Logins(indexes=secrets, netrc=netrc, credentials=files)


def header(found: Logins, url: str = HOST, *, is_channel: bool = True) -> str:
    asked = found.authorize(url, is_channel=is_channel)
    return asked.headers.get("authorization", "")


def test_each_kind_of_entry(tmp_path: Path) -> None:
    entries = {
        "a.example": {"CondaToken": "to/ken"},
        "b.example": {"BearerToken": "token"},
        "c.example": {"BasicHTTP": {"username": "mé", "password": "p:w"}},
        "d.example": {"S3Credentials": {"access_key_id": "a", "secret_access_key": "b"}},
        "e.example": {"OAuth": {"access_token": "a"}},
    }
    found = logins(write(tmp_path / "file", entries))
    token = found.authorize("https://a.example:8443/x/y.conda?z=1", is_channel=True)
    assert (token.url, token.headers) == ("https://a.example:8443/t/to%2Fken/x/y.conda?z=1", {})
    assert header(found, "https://B.example/x") == "Bearer token"
    assert header(found, "https://c.example/x") == "Basic bcOpOnA6dw=="  # base64 of mé:p:w
    for other in ("d", "e", "f"):
        asked = found.authorize(f"https://{other}.example/x", is_channel=True)
        assert (asked.url, asked.headers, asked.source) == (f"https://{other}.example/x", {}, "")


@pytest.mark.parametrize(
    ("entry", "host", "matches"),
    [
        ("*.prefix.dev", "prefix.dev", True),
        ("*.prefix.dev", "repo.prefix.dev", True),
        ("*.prefix.dev", "a.b.prefix.dev", True),
        ("*.prefix.dev", "notprefix.dev", False),
        ("*.prefix.dev", "prefix.dev.evil.example", False),
        ("prefix.dev", "repo.prefix.dev", False),
        ("*.0.0.1", "127.0.0.1", False),
        ("[::1]", "[::1]", True),
    ],
)
def test_wildcards_match_as_in_rattler(
    tmp_path: Path, entry: str, host: str, *, matches: bool
) -> None:
    found = logins(write(tmp_path / "file", {entry: bearer("token")}))
    assert (header(found, f"https://{host}/x") != "") is matches


def test_the_closest_entry_counts_and_the_first_file(tmp_path: Path) -> None:
    first = write(tmp_path / "one", {"*.org": bearer("top"), "a.example.org": bearer("first")})
    entries = {"*.example.org": bearer("near"), "a.example.org": bearer("second")}
    found = logins(first, write(tmp_path / "two", entries))
    assert header(found, "https://a.example.org/x") == "Bearer first"
    assert header(found, "https://b.example.org/x") == "Bearer near"
    assert header(found, "https://b.example2.org/x") == "Bearer top"


def test_netrc_counts_between_a_host_and_a_wildcard(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine conda.example.org login me password pw\n")
    netrc.chmod(0o600)
    wild = write(tmp_path / "wild", {"*.example.org": bearer("token")})
    assert header(logins(wild, netrc=netrc)).startswith("Basic ")
    exact = write(tmp_path / "exact", {"conda.example.org": bearer("token")})
    assert header(logins(exact, netrc=netrc)) == "Bearer token"


def test_what_a_url_says_by_itself_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "file", {"conda.example.org": {"CondaToken": "other"}})
    found = logins(file)
    own = "https://conda.example.org/t/own/team/linux-64/a.conda"
    assert found.authorize(own, is_channel=True).url == own
    named = found.authorize(HOST.replace("//", "//me:pw@"), is_channel=True)
    assert (named.url, named.headers["authorization"]) == (HOST, "Basic bWU6cHc=")


def test_tokens_of_channels_are_for_channels_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "file", {"conda.example.org": {"CondaToken": "token"}})
    wheel = "https://conda.example.org/pypi/a.whl"
    assert logins(file).authorize(wheel).url == wheel
    assert header(logins(file), wheel, is_channel=False) == ""


def test_nothing_is_sent_in_clear_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = {host: bearer("token") for host in ("conda.example.org", "localhost", "127.0.0.1")}
    found = logins(write(tmp_path / "file", entries))
    for _ in range(2):
        assert header(found, HOST.replace("https", "http")) == ""
    assert caplog.text.count("http://conda.example.org is asked without its login") == 1
    assert header(found, "http://localhost:1/x") == header(found, "http://127.0.0.1/x")
    assert header(found) == "Bearer token"


def test_the_urls_of_a_spec_are_for_its_channels_alone() -> None:
    spec = {
        channel_key(url): Secret(url)
        for url in (
            "https://h.example/t/token/team/",
            "https://me:pw@h.example/team/inner/",
        )
    }
    found = Logins(indexes={}, netrc=None, channels=spec)
    asked = found.authorize("https://h.example/team/noarch/a.conda", is_channel=True)
    assert asked.url == "https://h.example/t/token/team/noarch/a.conda"
    assert asked.source == "the spec's URL"
    inner = found.authorize("https://h.example/team/inner/noarch/a.conda", is_channel=True)
    assert inner.url == "https://h.example/team/inner/noarch/a.conda"
    assert inner.headers == {"authorization": "Basic bWU6cHc="}
    for other in ("https://h.example/teams/noarch/a.conda", "https://h.example.org/team/a"):
        assert found.authorize(other, is_channel=True).url == other
    wheel = "https://h.example/team/a.whl"
    assert found.authorize(wheel).url == wheel


def test_a_channel_at_the_root_of_a_host() -> None:
    url = "https://h.example/t/token"
    assert channel_key(url) == "https://h.example/"
    found = Logins(indexes={}, netrc=None, channels={channel_key(url): Secret(f"{url}/")})
    for place in ("https://h.example", url):
        asked = found.authorize(f"{place}/noarch/a.conda", is_channel=True)
        assert asked.url == "https://h.example/t/token/noarch/a.conda"
        assert asked.token == "token"
        assert asked.source == "the spec's URL"


@pytest.mark.parametrize(
    "text",
    [
        '{"h.example": {"CondaToken": "s3cret"',
        '["s3cret"]',
        '{"h.example": "s3cret"}',
        '{"h.example": {}}',
        '{"h.example": {"BearerToken": "s3cret\\nX: y"}}',
        '{"h.example": {"BearerToken": 7}}',
        '{"h.example": {"BasicHTTP": {"username": "s3cret"}}}',
        "\x00s3cret",
    ],
)
def test_a_broken_file_is_named_and_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        logins(file).authorize(HOST, is_channel=True)
    assert f"credentials file {file} is not" in caught.value.message or (
        f"in the credentials file {file} is not valid" in caught.value.message
    )
    assert "pixi auth login" in caught.value.hint
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert logins(file).authorize(HOST).headers == {}  # who asks no channel does not need it


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be read: Is a directory"):
        logins(tmp_path).authorize(HOST, is_channel=True)
    assert header(logins(tmp_path / "none")) == ""


def test_files_that_everybody_can_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "file", {"conda.example.org": bearer("token")})
    file.chmod(0o644)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine other.example login me password pw\n")
    netrc.chmod(0o644)
    found = logins(file, netrc=netrc)
    assert header(found) == "Bearer token"
    assert header(found, "https://other.example/x").startswith("Basic ")
    for path in (file, netrc):
        assert caplog.text.count(f"the logins in {path}: chmod 600 it") == 1


def test_a_broken_netrc_is_named_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine h.example login me password a s3cret\n")
    assert header(logins(netrc=netrc), "https://h.example/x") == ""
    assert f"{netrc} cannot be read: it is not valid near line" in caplog.text
    assert "s3cret" not in caplog.text


def test_no_representation_has_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for entry in ({"CondaToken": "s3cret"}, bearer("s3cret")):
        found = logins(write(tmp_path / "file", {"conda.example.org": entry}))
        asked = found.authorize(HOST, is_channel=True)
        assert "s3cret" in f"{asked.url} {asked.headers}"
        assert "s3cret" not in repr(asked) + repr(found) + caplog.text


def test_where_the_file_is(tmp_path: Path) -> None:
    usual = tmp_path / ".rattler/credentials.json"
    other = tmp_path / "other.json"
    assert credentials_paths({}, str(tmp_path)) == (usual,)
    told = {"RATTLER_AUTH_FILE": str(other)}
    assert credentials_paths(told, str(tmp_path)) == (other, usual)
    assert credentials_paths(told, None) == (other,)
