"""Keys that sign and are not plain files: in an ssh-agent, in a PKCS #11 token, encrypted."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from envferry.errors import HostError, NotFound, PipelineError, UsageError
from envferry.process import find_program
from envferry.trust.key_locations import open_told_key
from envferry.trust.pkcs11_token import TokenUri
from envferry.trust.signing import (
    SigningKey,
    generate_key,
    parse_public_key,
    parse_signing_key,
    sign,
    signers,
)
from envferry.trust.ssh_agent import list_agent_keys, open_agent_key
from tests.conftest import require
from tests.support.artifacts import PLATFORM, installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.key_holders import PIN, Token, add_ssh_key, make_token, softhsm_util, ssh_agent
from tests.support.keys import new_key
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGE = b"DSSEv1 4 text 5 hello"


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require("ssh-agent", find_program("ssh-agent"))
    # The path of a socket has at most 107 bytes.
    with ssh_agent(tmp_path_factory.mktemp("agent")) as path:
        yield path


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    require("softhsm", softhsm_util())
    return make_token(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def site(tmp_path: Path) -> CliRunner:
    """Return a command line with a registry and a host of their own."""
    (tmp_path / "registry").mkdir()
    environ = {
        "ENVFERRY_REGISTRY": str(tmp_path / "registry"),
        "ENVFERRY_TRUSTED_DIR": "/dev/null",
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
    }
    return CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)


def with_environ(site: CliRunner, **more: str) -> CliRunner:
    return CliRunner(home=site.home, cache=site.cache, environ={**site.environ, **more})


def push_and_install(site: CliRunner, key: str) -> None:
    """Sign an artifact with a key, and install it where only its public half is trusted."""
    artifact = installable_artifact(site.home / "packed", {"lib/one": b"1"})
    site.run(
        "push",
        artifact.archive_path,
        "--tag",
        "stable",
        "--sign-key",
        key,
    )
    site.run("keygen", "site", "--of", key)
    trusted = site.home / "trusted.d"
    trusted.mkdir()
    site.environ["ENVFERRY_TRUSTED_DIR"] = str(trusted)
    (site.home / "site.pub").rename(trusted / "site.pub")
    host = with_environ(site, SSH_AUTH_SOCK="", ENVFERRY_KEY_PASSPHRASE="")
    host.run("install", "demo@stable")
    key_id = parse_public_key((trusted / "site.pub").read_bytes(), "site").id
    assert key_id in host.run("verify", "demo@stable", "--platform", PLATFORM).stdout


# ssh-agent


def test_what_an_agent_signs_hosts_verify_as_ever(site: CliRunner, agent: str) -> None:
    add_ssh_key(agent, site.home, "release")
    push_and_install(with_environ(site, SSH_AUTH_SOCK=agent), "ssh:release@desk")


def test_a_key_of_an_agent_by_each_of_its_names(agent: str, tmp_path: Path) -> None:
    path = add_ssh_key(agent, tmp_path, "one")
    add_ssh_key(agent, tmp_path, "rsa", "rsa")
    only = open_agent_key("ssh:", agent)  # the RSA key cannot be meant
    found = next(key for key in list_agent_keys(agent) if key.raw)
    listed = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
    assert found.fingerprint == listed.stdout.split()[1]
    names = (f"ssh:{found.fingerprint}", "ssh:one@desk", f"ssh:{path}")
    assert {open_agent_key(name, agent).public.id for name in names} == {only.public.id}
    assert signers(MESSAGE, sign(MESSAGE, (only,)), (only.public,)) == (only.public,)


def test_an_agent_with_two_keys_wants_a_name(agent: str, tmp_path: Path) -> None:
    add_ssh_key(agent, tmp_path, "one")
    add_ssh_key(agent, tmp_path, "two")
    with pytest.raises(UsageError, match="any of 2 keys") as caught:
        open_agent_key("ssh:", agent)
    assert "one@desk" in caught.value.hint
    assert "two@desk" in caught.value.hint
    with pytest.raises(NotFound, match="three"):
        open_agent_key("ssh:three", agent)
    with pytest.raises(NotFound, match=r"none\.pub"):
        open_agent_key(f"ssh:{tmp_path / 'none.pub'}", agent)
    with pytest.raises(UsageError, match="home directory is not known"):
        open_agent_key("ssh:~no-such-user/key.pub", agent)


def test_no_agent_and_a_locked_one(site: CliRunner, agent: str) -> None:
    with pytest.raises(UsageError, match="SSH_AUTH_SOCK is not set"):
        open_agent_key("ssh:", "")
    with pytest.raises(HostError, match="no ssh-agent answers"):
        open_agent_key("ssh:", str(site.home / "nothing"))
    add_ssh_key(agent, site.home, "one")
    key = open_agent_key("ssh:", agent)
    locked = {**os.environ, "SSH_AUTH_SOCK": agent, "SSH_ASKPASS_REQUIRE": "force"}
    word = site.home / "word"
    word.write_text("#!/bin/sh\necho word\n")
    word.chmod(0o755)
    subprocess.run(["ssh-add", "-x"], check=True, env={**locked, "SSH_ASKPASS": str(word)})
    with pytest.raises(HostError, match="did not sign with one@desk"):
        sign(MESSAGE, (key,))
    with pytest.raises(NotFound, match="no Ed25519 key"):
        open_agent_key("ssh:", agent)


@contextmanager
def lying_agent(folder: Path, answer: bytes) -> Iterator[str]:
    """Answer each request on a socket with the same bytes."""
    path = folder / "lies"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "no ssh-agent answers"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "claims to send"),
        (b"\xff\xff\xff\xff", "claims to send"),
        (b"\0\0\0\1\x05", "does not list its keys"),
        (b"\0\0\0\x09\x0c\0\0\0\x01\xff\xff\xff\xff", "no Ed25519 key"),
        (b"\0\0\0\x05\x0c\xff\xff\xff\xff", "no Ed25519 key"),
    ],
)
def test_what_is_not_an_agent(
    tmp_path_factory: pytest.TempPathFactory, answer: bytes, message: str
) -> None:
    with (
        lying_agent(tmp_path_factory.mktemp("lie"), answer) as path,
        pytest.raises(PipelineError, match=message),
    ):
        open_agent_key("ssh:", path)


def test_a_signature_that_does_not_verify_is_not_written() -> None:
    ours, theirs = new_key(), new_key()
    with pytest.raises(HostError, match="does not verify with its own public key"):
        sign(MESSAGE, (SigningKey(public=ours.public, key=theirs.key),))


# PKCS #11


def test_what_a_token_signs_hosts_verify_as_ever(site: CliRunner, token: Token) -> None:
    environ = {**token.environ, "ENVFERRY_KEY_PASSPHRASE": PIN}
    push_and_install(with_environ(site, **environ), token.uri())


def test_a_pin_in_a_file(site: CliRunner, token: Token) -> None:
    (site.home / "pin").write_text(f"{PIN}\n")
    here = with_environ(site, **token.environ)
    here.run("keygen", "one", "--of", token.uri(more=f"&pin-source=file:{site.home}/pin"))
    by_setting = with_environ(here, ENVFERRY_KEY_PASSPHRASE_FILE=str(site.home / "pin"))
    by_setting.run("keygen", "two", "--of", token.uri().replace("object=envferry", "id=%07"))
    assert (site.home / "one.pub").read_bytes() == (site.home / "two.pub").read_bytes()


def test_what_is_wrong_with_a_token_is_said(site: CliRunner, token: Token) -> None:
    here = with_environ(site, **token.environ, ENVFERRY_KEY_PASSPHRASE="wrong")
    said = here.run("keygen", "x", "--of", token.uri(), expect=2)
    assert "the PIN of the token with envferry is wrong" in said.stderr
    here = with_environ(site, **token.environ, ENVFERRY_KEY_PASSPHRASE=PIN)
    said = here.run("keygen", "x", "--of", token.uri("other"), expect=7)
    assert "no Ed25519 key other" in said.stderr
    said = here.run("keygen", "x", "--of", token.uri(token="other"), expect=7)
    assert "no token other" in said.stderr
    nowhere = Token(site.home / "none.so", token.config).uri()
    assert "PKCS #11" in here.run("keygen", "x", "--of", nowhere, expect=11).stderr
    assert not (site.home / "x.pub").exists()


def test_uris_of_tokens() -> None:
    uri = TokenUri.parse(
        "pkcs11:token=My%20token;id=%01%ff?module-path=/a/b.so&pin-source=file:///p"
    )
    assert uri == TokenUri(module="/a/b.so", token="My token", id=b"\x01\xff", pin_source="/p")
    for text, message in {
        "pkcs11:object=a?module-path=/m&pin-value=1234": "does not belong on a command line",
        "pkcs11:object=a": "module-path",
        "pkcs11:token=a?module-path=/m": "does not say which key",
        "pkcs11:object=a;colour=red?module-path=/m": "colour is not one of",
    }.items():
        with pytest.raises(UsageError, match=message) as caught:
            TokenUri.parse(text)
        assert "1234" not in caught.value.message


def test_no_message_repeats_a_pin() -> None:
    for text in (
        "pkcs11:token=a&pin-value=1234",
        "pkcs11:object=a;Pin-Value=1234?module-path=/m",
        "pkcs11:object=a?module-path=/m&pin=1234",
    ):
        with pytest.raises(UsageError, match="does not belong on a command line") as caught:
            TokenUri.parse(text)
        assert "1234" not in caught.value.message


def test_two_keys_of_one_token_sign_together(site: CliRunner, token: Token) -> None:
    (site.home / "pin").write_text(f"{PIN}\n")
    here = with_environ(site, **token.environ, ENVFERRY_KEY_PASSPHRASE=PIN)
    artifact = installable_artifact(site.home / "packed", {"lib/one": b"1"})
    by_id = token.uri().replace("object=envferry", "id=%07")
    here.run("push", artifact.archive_path, "--sign-key", token.uri(), "--sign-key", by_id)
    for name, text, message, code in (
        ("empty", "\n", "is empty", 2),
        ("none", "", "hint: correct pin-source=", 7),
    ):
        if text:
            (site.home / name).write_text(text)
        uri = token.uri(more=f"&pin-source=file:{site.home}/{name}")
        assert message in here.run("keygen", "x", "--of", uri, expect=code).stderr


# passphrases


def test_an_encrypted_key_signs_with_its_passphrase(site: CliRunner) -> None:
    told = with_environ(site, ENVFERRY_KEY_PASSPHRASE="four words of ours")
    told.run("keygen", "locked", "--passphrase")
    assert b"ENCRYPTED PRIVATE KEY" in (site.home / "locked.key").read_bytes()
    push_and_install(told, "locked.key")
    (site.home / "word").write_text("four words of ours\n")
    by_file = with_environ(site, ENVFERRY_KEY_PASSPHRASE_FILE=str(site.home / "word"))
    by_file.run("keygen", "again", "--of", "locked.key")
    assert (site.home / "again.pub").read_bytes() == (site.home / "locked.pub").read_bytes()


def test_a_passphrase_that_is_wrong_missing_or_empty(site: CliRunner) -> None:
    told = with_environ(site, ENVFERRY_KEY_PASSPHRASE="right")
    told.run("keygen", "locked", "--passphrase")
    wrong = with_environ(site, ENVFERRY_KEY_PASSPHRASE="wrong secret")
    said = wrong.run("keygen", "x", "--of", "locked.key", expect=2).stderr
    assert "does not unlock locked.key" in said
    assert "wrong secret" not in said
    missing = with_environ(site, ENVFERRY_KEY_PASSPHRASE_FILE=str(site.home / "none"))
    missing.run("keygen", "x", "--of", "locked.key", expect=7)
    (site.home / "empty").write_text("\n")
    empty = with_environ(site, ENVFERRY_KEY_PASSPHRASE_FILE=str(site.home / "empty"))
    empty.run("keygen", "x", "--of", "locked.key", expect=2)
    assert "is empty" in empty.run("keygen", "y", "--passphrase", expect=2).stderr
    assert not list(site.home.glob("[xy].*"))


def test_a_passphrase_that_no_key_has(site: CliRunner) -> None:
    told = with_environ(site, ENVFERRY_KEY_PASSPHRASE="ä" * 500)
    told.run("keygen", "locked", "--passphrase")
    told.run("keygen", "again", "--of", "locked.key")
    (site.home / "long").write_text("x" * 1024 + "\nmore")
    for environ, message in (
        ({"ENVFERRY_KEY_PASSPHRASE": "x" * 1024}, "has more than 1023 bytes"),
        ({"ENVFERRY_KEY_PASSPHRASE": os.fsdecode(b"s3cr\xff\xfet")}, "is not UTF-8"),
        ({"ENVFERRY_KEY_PASSPHRASE_FILE": str(site.home / "long")}, "has more than 1023 bytes"),
    ):
        here = with_environ(site, **environ)
        for words in (["keygen", "x", "--passphrase"], ["keygen", "x", "--of", "locked.key"]):
            said = here.run(*words, expect=2).stderr
            assert message in said
            assert "s3cr" not in said
    assert not list(site.home.glob("x.*"))


def test_a_key_of_openssh_is_for_an_agent(tmp_path: Path) -> None:
    require("ssh-keygen", find_program("ssh-keygen"))
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    with pytest.raises(UsageError, match="OpenSSH's own format") as caught:
        parse_signing_key(path.read_bytes(), "key")
    assert "--sign-key ssh:" in str(caught.value.hint)


def test_without_a_terminal_nobody_waits_for_a_passphrase(site: CliRunner) -> None:
    with_environ(site, ENVFERRY_KEY_PASSPHRASE="right").run("keygen", "locked", "--passphrase")
    argv, environ = site.command("keygen", "x", "--of", "locked.key")
    finished = subprocess.run(
        argv,
        cwd=site.home,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert finished.returncode == 2
    assert "this process has no terminal" in finished.stderr


def type_at_a_terminal(site: CliRunner, words: list[str], lines: list[str]) -> tuple[int, str]:
    """Run envferry at a terminal of its own and type a line at each question."""
    argv, environ = site.command(*words)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(site.home)
        os.execve(argv[0], argv, environ)
    shown = bytearray()

    def asked(times: int) -> bool:
        shown.extend(os.read(terminal, 4096))
        return shown.count(b"Passphrase for") >= times

    for number, line in enumerate(lines, 1):
        wait_until(lambda number=number: asked(number), "the question")  # type: ignore[misc]
        os.write(terminal, f"{line}\n".encode())
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says EIO when the other end is closed
            break
        if not part:
            break
        shown.extend(part)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def test_a_passphrase_is_asked_for_at_a_terminal(site: CliRunner) -> None:
    code, shown = type_at_a_terminal(site, ["keygen", "a", "--passphrase"], ["hidden", "hidden"])
    assert code == 0, shown
    assert "hidden" not in shown
    key = parse_signing_key((site.home / "a.key").read_bytes(), "a", lambda _: "hidden")
    assert key.public.id == parse_public_key((site.home / "a.pub").read_bytes(), "a").id
    code, _ = type_at_a_terminal(site, ["keygen", "b", "--of", "a.key"], ["hidden"])
    assert code == 0
    code, shown = type_at_a_terminal(site, ["keygen", "c", "--passphrase"], ["one", "two"])
    assert code == 2
    assert "differ" in shown
    assert not (site.home / "c.key").exists()


def test_openssl_encrypts_keys_as_well(tmp_path: Path) -> None:
    openssl = find_program("openssl")
    require("openssl", openssl)
    private, public = generate_key()
    (tmp_path / "plain").write_bytes(private)
    scrypt = ["-topk8", "-scrypt", "-passout", "pass:word", "-in", str(tmp_path / "plain")]
    subprocess.run([str(openssl), "pkcs8", *scrypt, "-out", str(tmp_path / "k")], check=True)
    key = parse_signing_key((tmp_path / "k").read_bytes(), "k", lambda _: "word")
    assert key.public.id == parse_public_key(public, "k").id


def test_a_variable_may_name_a_key(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ssh_key(agent, tmp_path, "one")
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    assert open_told_key(" ssh:one@desk\n", "ENVFERRY_SIGN_KEY").public.name == "ssh:one@desk"


def test_what_unlocks_keys_reaches_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    from envferry.config import Settings, child_environ

    monkeypatch.setenv("ENVFERRY_KEY_PASSPHRASE", "word")
    assert "ENVFERRY_KEY_PASSPHRASE" not in child_environ()
    assert "word" not in repr(Settings.from_environ({"ENVFERRY_KEY_PASSPHRASE": "word"}))
