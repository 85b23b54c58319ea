"""Logins, TLS and proxies of OCI registries, each on a docker-registry that insists on them."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from envferry.errors import PipelineError, StoreError
from envferry.stores.oci.client import RegistryClient
from envferry.stores.oci.documents import BYTES, describe
from envferry.stores.oci.sending import send_bytes
from envferry.stores.opening import open_store
from tests.conftest import require
from tests.support.forward_proxy import forward_proxy
from tests.support.oci_registry import docker_registry, find_oci_program
from tests.support.token_server import PASSWORD, REFRESH, USER, TokenServer, token_server
from tests.support.web_server import write_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.oci_registry import OciServer

pytestmark = pytest.mark.oci
BCRYPT = "$2b$05$abcdefghijklmnopqrstuuEpHRRKIlpAGo.iP7Bpa.htQEJMAAnRe"
"""Of PASSWORD."""
LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def basic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciServer]:
    """A registry that wants a name and a password."""
    require("oci", find_oci_program("docker-registry"))
    home = tmp_path_factory.mktemp("basic")
    (home / "htpasswd").write_text(f"{USER}:{BCRYPT}\n")
    more = f"auth:\n  htpasswd: {{realm: here, path: {home / 'htpasswd'}}}\n"
    with docker_registry(home / "registry", more) as server:
        yield server


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenServer]:
    """A token server."""
    with token_server() as server:
        yield server


@pytest.fixture(scope="module")
def bearer_server(
    tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OciServer]:
    """A registry that wants tokens of that server."""
    require("oci", find_oci_program("docker-registry"))
    home = tmp_path_factory.mktemp("bearer")
    with docker_registry(home, tokens.configuration(home / "issuer.pem")) as server:
        yield server


@pytest.fixture
def logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of logins; empty."""
    path = tmp_path / "auth.json"
    path.write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    return path


def works(url: str) -> None:
    store = open_store(url)
    store.create("a", b"there")
    assert store.read("a") == b"there"
    assert [one.key for one in store.list()] == ["a"]
    store.delete("a")


def refusal(url: str) -> str:
    with pytest.raises(PipelineError) as caught:
        open_store(url).create("a", b"x")
    assert caught.value.hint
    said = caught.value.message + caught.value.hint
    assert PASSWORD not in said
    assert REFRESH not in said
    return said


def rights_of(scopes: str) -> set[tuple[str, str]]:
    """Return what is asked for of each repository; the registry names rights in any order."""
    parts = (scope.rpartition(":") for scope in scopes.split())
    return {(place, ",".join(sorted(rights.split(",")))) for place, _, rights in parts}


def test_a_name_and_a_password(basic_server: OciServer, logins: Path) -> None:
    url = f"oci://{basic_server.host}/site/envs"
    assert "requires a login" in refusal(url)
    assert f"podman login {basic_server.host}" in refusal(url)
    logins.write_text(json.dumps({"auths": {basic_server.host: {"auth": LOGIN}}}))
    works(url)
    wrong = base64.b64encode(f"{USER}:another".encode()).decode()
    logins.write_text(json.dumps({"auths": {basic_server.host: {"auth": wrong}}}))
    assert f"refuses the login of {USER}" in refusal(url)


@pytest.mark.parametrize("entry", [{"auth": LOGIN}, {"identitytoken": REFRESH}])
def test_tokens_for_each_repository(
    bearer_server: OciServer, tokens: TokenServer, logins: Path, entry: dict[str, str]
) -> None:
    """Rights are asked for one repository at a time, the least that will do."""
    url = f"oci://{bearer_server.host}/site/{'names' if 'auth' in entry else 'identities'}"
    logins.write_text(json.dumps({"auths": {f"{bearer_server.host}/site": entry}}))
    tokens.asked.clear()
    works(url)
    assert any(scope.endswith(":pull") for scope in tokens.asked)
    assert any({"pull,push"} == {right for _, right in rights_of(one)} for one in tokens.asked)
    assert len(tokens.asked) == len(set(tokens.asked)), "a token is used until it ends"
    logins.write_text("{}")
    assert "refuses the login" in refusal(url)


@pytest.mark.parametrize("may_read", [True, False])
@pytest.mark.parametrize("entry", [{"auth": LOGIN}, {"identitytoken": REFRESH}])
def test_a_blob_of_a_repository_that_one_may_read_is_mounted(
    bearer_server: OciServer,
    tokens: TokenServer,
    logins: Path,
    entry: dict[str, str],
    may_read: bool,
) -> None:
    """Rights to both repositories are asked for at once; where that is refused, bytes are sent."""
    logins.write_text(json.dumps({"auths": {bearer_server.host: entry}}))
    space = RegistryClient.of(bearer_server.url)
    place = f"mount-{'auth' in entry}-{may_read}".lower()
    source, target, data = f"{place}/source", f"{place}/target", b"of the base"
    blob = describe(data, BYTES)
    send_bytes(space, source, data, blob)
    tokens.hidden = set() if may_read else {source}
    try:
        assert space.mount(target, blob.digest, source) == may_read
        both = {(f"repository:{target}", "pull,push"), (f"repository:{source}", "pull")}
        assert both in [rights_of(scopes) for scopes in tokens.asked]
        send_bytes(space, target, data, blob)
        assert space.read_blob(target, blob, 0, blob.size) == data
    finally:
        tokens.hidden = set()


def test_a_token_that_has_run_out_is_renewed(
    bearer_server: OciServer, tokens: TokenServer, logins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins.write_text(json.dumps({"auths": {bearer_server.host: {"auth": LOGIN}}}))
    store = open_store(f"oci://{bearer_server.host}/renewed")
    monkeypatch.setattr(tokens, "lifetime", -120)  # beyond the minute that clocks may differ
    with pytest.raises(StoreError, match="denies access"):
        store.stat("a")
    monkeypatch.setattr(tokens, "lifetime", 300)
    assert store.stat("a") is None


def test_a_credential_helper(
    basic_server: OciServer, logins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"oci://{basic_server.host}/helped"
    logins.write_text(json.dumps({"credHelpers": {basic_server.host: "ferry"}}))
    assert "docker-credential-ferry is not installed" in refusal(url)
    helper = tmp_path / "bin/docker-credential-ferry"
    helper.parent.mkdir()
    answer = json.dumps({"ServerURL": "", "Username": USER, "Secret": PASSWORD})
    helper.write_text(
        f"#!/bin/sh\nread -r host\n[ $1 = get ] && [ $host = {basic_server.host} ] || exit 1\n"
        f"echo '{answer}'\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    works(url)


def test_a_sites_own_authority(
    logins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("oci", find_oci_program("docker-registry"))
    authority, certificate = write_certificates(tmp_path)
    more = f"  tls: {{certificate: {certificate}, key: {certificate}}}\n"
    with docker_registry(tmp_path / "registry", more, scheme="https") as server:
        url = f"oci+https://{server.host}/envs"
        assert "SSL_CERT_FILE" in refusal(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        works(url)


def test_through_a_proxy(
    oci_server: OciServer, logins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy(login="me:s3cret") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:s3cret@"))
        monkeypatch.delenv("no_proxy", raising=False)
        works(f"oci://{oci_server.host}/proxied")
        assert proxy.seen
