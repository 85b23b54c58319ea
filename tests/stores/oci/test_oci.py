"""OCI registries without one: names, documents, logins, and what is refused before anybody asks."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envferry.errors import IntegrityError, SpecError, StoreError, ToolFailed, UsageError
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.stores.oci.blob_upload import _without
from envferry.stores.oci.credentials import find_login
from envferry.stores.oci.documents import (
    EMPTY,
    MANIFEST,
    REF_NAME,
    Platform,
    describe,
    image_manifest,
    read_manifest,
)
from envferry.stores.oci.image_layout import REFERENCES, LayoutRepositories
from envferry.stores.oci.image_store import OciStore
from envferry.stores.oci.key_tags import TAG, Names, archive_name, escape, unescape
from envferry.stores.oci.tokens import Challenge, TokenChallenge, Tokens
from envferry.stores.opening import open_store
from envferry.transfer.export import ExportRequest, export_artifacts
from envferry.transfer.mirror import MirrorRequest, mirror_registry
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.cli_runner import CliRunner
from tests.support.store_suite import StoreSuite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envferry.stores.oci.documents import ImageIndex
    from envferry.stores.port import Store

NAMES = Names("site/envs")
NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", fullmatch=True)
PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,60}", fullmatch=True)
ID = st.from_regex(r"[0-9a-f]{12}", fullmatch=True)
KEYS = st.one_of(
    st.lists(PART, min_size=1, max_size=5).map("/".join),
    st.tuples(NAME, NAME, ID, PART).map(lambda found: "v1/envs/{}/{}/{}/{}".format(*found)),
    st.tuples(NAME, NAME, ID).map(
        lambda found: "v1/envs/{0}/{1}/{2}/{0}-{1}-{2}.tar.zst".format(*found)
    ),
    st.tuples(NAME, NAME, ID).map(lambda found: "v1/envs/{}/{}/{}/archive".format(*found)),
)


class InterruptedSpace(LayoutRepositories, frozen=True):
    """A layout in which something happens after each look at its list or at a small blob."""

    interruptions: ClassVar[list[Callable[[], object]]] = []

    def _index(self) -> ImageIndex:
        index = super()._index()
        self._interrupt()
        return index

    def _blob(self, digest: str) -> bytes | None:
        data = super()._blob(digest)
        self._interrupt()
        return data

    def _interrupt(self) -> None:
        if self.interruptions:
            self.interruptions.pop(0)()


class TestLayout(StoreSuite):
    """On a disk, too, keys are compared before and after: a folder has no other conditions."""

    completes_atomically = False
    decides_races = False

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        LayoutRepositories.create(tmp_path / "layout")
        return open_store(str(tmp_path / "layout"))

    @pytest.mark.parametrize("reads", range(4))
    def test_what_is_replaced_while_it_is_read_is_not_missing(
        self, tmp_path: Path, reads: int
    ) -> None:
        """Between its list and its manifest, and between its manifest and its bytes."""
        space = InterruptedSpace(LayoutRepositories.create(tmp_path / "layout").directory)
        reader, writer = OciStore.in_layout(space), open_store(str(tmp_path / "layout"))
        version = writer.replace("tag", b"1", None)
        space.interruptions[:] = [
            *[lambda: None] * reads,
            lambda: writer.replace("tag", b"2", version),
        ]
        assert reader.read("tag") in (b"1", b"2")
        assert reader.read("tag") == b"2"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with one artifact."""
    artifact = make_artifact(tmp_path / "packed", 1000)
    registry = Registry.open(str(tmp_path / "registry"))
    push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
    return registry


@pytest.fixture
def layout(registry: Registry, tmp_path: Path) -> Path:
    """A layout of it."""
    export(registry, tmp_path / "layout")
    return tmp_path / "layout"


def export(registry: Registry, directory: Path) -> None:
    ref = Ref.parse("demo@stable")
    order = ExportRequest(refs=(ref,), platform=PLATFORM, as_images=True)
    export_artifacts(
        registry, directory, order, journals=directory.parent / "journals", progress=Silent()
    )


def test_a_layout_has_images_and_all_else(registry: Registry, layout: Path) -> None:
    """To write it again changes nothing; a second version leaves no blob that nobody names."""
    index = json.loads((layout / "index.json").read_bytes())
    assert [one["annotations"][REF_NAME] for one in index["manifests"]] == [
        "demo:latest",
        "demo:stable",
    ]
    before = {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()}
    export(registry, layout)
    assert before == {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()}
    registry = Registry.open(str(layout))
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()
    second = make_artifact(layout.parent / "packed", 1000, seed=2)
    push_artifact(second, registry=registry, tags=("stable",), progress=Silent())
    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
    now = datetime.now(timezone.utc) + timedelta(seconds=5)
    carry_out(registry, plan_prune(registry, Scope(), policy, now), progress=Silent())
    assert [one.id for one in registry.environments()] == [second.manifest.id]
    assert names_in_blobs(layout) == {path.name for path in (layout / "blobs/sha256").iterdir()}


def names_in_blobs(layout: Path) -> set[str]:
    """Return the digests that a layout names, wherever that is."""
    waiting, found = [(layout / "index.json").read_text()], set[str]()
    while waiting:
        for name in set(re.findall(r"sha256:([0-9a-f]{64})", waiting.pop())) - found:
            found.add(name)
            blob = layout / "blobs/sha256" / name
            if blob.exists() and blob.read_bytes()[:1] == b"{":
                waiting.append(blob.read_text())
    return found & {path.name for path in (layout / "blobs/sha256").iterdir()}


@pytest.mark.parametrize("which", ["manifest", "layer", "references"])
@pytest.mark.parametrize("fault", ["missing", "cut off", "changed"])
def test_a_layout_that_is_not_whole(layout: Path, tmp_path: Path, which: str, fault: str) -> None:
    """The blob is named, and nothing of it reaches a registry."""
    index = json.loads((layout / "index.json").read_bytes())
    digest = index["annotations"][REFERENCES]
    if which != "references":
        references = json.loads((layout / "blobs/sha256" / digest[7:]).read_bytes())
        (archive,) = (one for one in references["references"] if "archive" in one["tag"][-8:])
        digest = archive["manifest"]["digest"]
    if which == "layer":
        digest = json.loads((layout / "blobs/sha256" / digest[7:]).read_bytes())["layers"][0][
            "digest"
        ]
    blob = layout / "blobs/sha256" / digest[7:]
    data = blob.read_bytes()
    blob.unlink()
    if fault != "missing":
        half = len(data) // 2
        blob.write_bytes(
            data[:half] if fault == "cut off" else data[:half] + b"#" + data[half + 1 :]
        )
    site = Registry.open(str(tmp_path / "site"))
    with pytest.raises(IntegrityError) as caught:
        mirror_registry(Registry.open(str(layout)), site, MirrorRequest(),
                        journals=tmp_path / "journals", progress=Silent())  # fmt: skip
    assert digest in caught.value.message or fault == "changed"
    assert caught.value.hint
    assert not list((tmp_path / "site").rglob("*.tar.zst"))


def test_a_layout_of_others_is_named_by_its_type(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    del index["annotations"]
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        IntegrityError, match=r"application/vnd\.oci\.image\.index\.v1\+json"
    ) as caught:
        Registry.open(str(layout))
    assert "export REF DIR --oci" in caught.value.hint


def test_the_command_that_writes_layouts(registry: Registry, tmp_path: Path) -> None:
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache",
                     environ={"ENVFERRY_REGISTRY": registry.url})  # fmt: skip
    words = ("export", "demo@stable")
    where = ("--platform", PLATFORM)
    assert "--registry layout" in host.run(*words, "layout", "--oci", *where).stdout
    host.run("export", "demo@stable", "folder", *where)
    assert "add --oci" in host.run(*words, "layout", *where, expect=10).stderr
    assert "leave out --oci" in host.run(*words, "folder", "--oci", *where, expect=10).stderr
    said = host.run(*words, "new", "--oci", "--split", "4G", *where, expect=2).stderr
    assert "--oci and --split cannot be combined" in said


@given(KEYS)
def test_every_key_is_one_tag_and_no_other_keys(key: str) -> None:
    place = NAMES.place(key)
    assert TAG.fullmatch(place.tag)
    name = key.split("/")[2] if key.startswith(("v1/envs/", "v1/tags/")) else None
    if name and key.count("/") < 3:
        name = None
    read = NAMES.key(place.tag, name)
    assert read == key or (read is None and place.tag.startswith("_h."))


@given(st.lists(st.binary(max_size=5), max_size=6), st.integers(0, 40))
def test_what_has_arrived_is_not_sent_again(pieces: list[bytes], count: int) -> None:
    assert b"".join(_without(pieces, count)) == b"".join(pieces)[count:]
    assert all(_without(pieces, count)), "an empty piece would end a chunked body"


@given(st.lists(PART, min_size=1, max_size=6).map("/".join))
def test_escapes_are_read_back(key: str) -> None:
    assert unescape(escape(key)) == key


@pytest.mark.parametrize("text", ["a_b", "a_", "___", "_x"])
def test_escapes_that_nobody_wrote(text: str) -> None:
    assert unescape(text) is None


@pytest.mark.parametrize(
    ("key", "repository", "tag"),
    [
        (
            "v1/envs/demo/linux-64/0123456789ab/demo-linux-64-0123456789ab.tar.zst",
            "site/envs/demo",
            "_f.linux-64-0123456789ab.archive",
        ),
        (
            "v1/envs/demo/linux-64/0123456789ab/demo-linux-64-0123456789ab.tar.zst.xxh128",
            "site/envs/demo",
            "_f.linux-64-0123456789ab.archive.xxh128",
        ),
        (
            "v1/envs/demo/linux-64/0123456789ab/manifest.json",
            "site/envs/demo",
            "_f.linux-64-0123456789ab.manifest.json",
        ),
        ("v1/tags/demo/linux-64/stable", "site/envs/demo", "_t.linux-64.stable"),
        ("v1/tags/Demo/linux-64/stable", "site/envs/x--44656d6f", "_t.linux-64.stable"),
        ("v1/probe-1", "site/envs", "_k.v1_sprobe-1"),
    ],
)
def test_where_keys_are(key: str, repository: str, tag: str) -> None:
    """As docs/format.md has them."""
    place = NAMES.place(key)
    assert (place.repository, place.tag) == (repository, tag)


@pytest.mark.parametrize(
    "tag",
    ["linux-64-0123456789ab", "_t.x", "run.stable", f"sha256-{'0' * 64}", f"sha256-{'0' * 64}.att"],
)
def test_tags_that_look_like_ours_are_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag in an OCI registry"):
        NAMES.place(f"v1/tags/demo/linux-64/{tag}")


def test_what_an_archive_is_called() -> None:
    found = archive_name("v1/envs/a/linux-64/0123456789ab/a-linux-64-0123456789ab.tar.zst")
    assert found is not None
    assert found.tag == "linux-64-0123456789ab"
    assert archive_name("v1/envs/a/linux-64/0123456789ab/b-linux-64-0123456789ab.tar.zst") is None


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux-64", ("amd64", "linux")),
        ("linux-aarch64", ("arm64", "linux")),
        ("osx-arm64", ("arm64", "darwin")),
        ("win-64", ("amd64", "windows")),
        ("linux-ppc64le", ("ppc64le", "linux")),
    ],
)
def test_platforms_in_the_words_of_images(platform: str, expected: tuple[str, str]) -> None:
    found = Platform.of(platform)
    assert (found.architecture, found.os) == expected


def test_what_is_written_has_one_form() -> None:
    blob = describe(b"{}", EMPTY)
    data = image_manifest(config=blob, layers=(blob,), annotations={"b": "1", "a": "2"})
    assert data == image_manifest(annotations={"a": "2", "b": "1"}, layers=(blob,), config=blob)
    assert json.loads(data)["mediaType"] == MANIFEST
    assert json.loads(data)["schemaVersion"] == 2
    assert read_manifest(data, "it").layers == (blob,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b"{",
        b'{"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": []}',
        b'{"schemaVersion": 2, "layers": [{"size": "x"}]}',
        b"[" * 100_000,
    ],
)
def test_manifests_that_are_none(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"it "):
        read_manifest(data, "it")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("oci://", "names no host"),
        ("oci:///envs", "names no host"),
        ("oci://host", "names no repository"),
        ("oci://host/", "names no repository"),
        ("oci://host/Envs", "cannot be the name of a repository"),
        ("oci://host:port/envs", "not of the form"),
        ("oci://host:99999/envs", "not of the form"),
        ("oci://user:word@host/envs", "holds a login"),
        ("oci:host/envs", "`//` is missing"),
    ],
)
def test_urls_that_name_no_registry(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("oci://registry.example/envs", "https://registry.example"),
        ("oci://registry.example:5000/a/b/", "https://registry.example:5000"),
        ("oci+http://registry.example/envs", "http://registry.example"),
        ("oci://localhost:5000/envs", "http://localhost:5000"),
        ("oci://127.0.0.9:5000/envs", "http://127.0.0.9:5000"),
        ("oci://[::1]:5000/envs", "http://[::1]:5000"),
        ("oci+https://localhost/envs", "https://localhost"),
        ("oci://localhost.example/envs", "https://localhost.example"),
    ],
)
def test_plain_http_is_for_this_machine_or_when_said(url: str, base: str) -> None:
    store = open_store(url)
    assert getattr(store, "space").session.base == base  # noqa: B009  (the port has no such attribute)
    assert store.url == url.rstrip("/")


@pytest.mark.parametrize("tail", [False, True])
def test_a_damaged_archive_is_found_while_it_is_sent(tmp_path: Path, tail: bool) -> None:
    """It is read once, and nothing of it gets a name; the sound one goes there afterwards."""
    artifact = make_artifact(tmp_path / "packed", 300_000)
    path, sound = artifact.archive_path, artifact.archive_path.read_bytes()
    damaged = bytearray(sound)
    damaged[len(sound) - 40 if tail else 1000] ^= 1
    path.write_bytes(damaged)
    LayoutRepositories.create(tmp_path / "layout")
    registry = Registry.open(str(tmp_path / "layout"))
    with pytest.raises(IntegrityError, match=r"damaged|index"):
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    assert list(registry.store.list()) == []
    assert not [
        blob
        for blob in (tmp_path / "layout/blobs/sha256").iterdir()
        if not blob.name.startswith(".") and blob.stat().st_size > 100_000
    ]
    path.write_bytes(sound)
    assert push_artifact(artifact, registry=registry, tags=(), progress=Silent()).uploaded
    assert not list(tmp_path.glob("packed/.*.upload"))
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError):
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())


class TestLogins:
    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "auth.json"
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
        return path

    def test_the_narrowest_entry_counts(self, file: Path) -> None:
        entries = {
            "https://host.example/v1/": {"username": "docker", "password": "1"},
            "host.example/site": {"username": "site", "password": "2"},
            "host.example/site/envs/demo": {"username": "demo", "password": "3"},
            "other.example": {"auth": ""},
        }
        file.write_text(json.dumps({"auths": entries}))
        found = {
            repository: login.user if (login := find_login("host.example", repository)) else None
            for repository in ("a", "site/envs", "site/envs/demo", "sites")
        }
        assert found == {"a": "docker", "site/envs": "site", "site/envs/demo": "demo",
                         "sites": "docker"}  # fmt: skip
        assert find_login("other.example", "a") is None
        assert find_login("another.example", "a") is None

    def test_passwords_have_colons_and_no_text(self, file: Path) -> None:
        file.write_text(json.dumps({"auths": {"host": {"auth": "bWU6YTpi"}}}))
        login = find_login("host", "x")
        assert login is not None
        assert login.password.reveal() == "a:b"
        assert login.basic == "Basic bWU6YTpi"
        assert "a:b" not in repr(login)

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"auths": {"host": {"auth": 7}}}'])
    def test_a_file_that_is_none(self, file: Path, text: str) -> None:
        file.write_text(text)
        with pytest.raises(SpecError, match="is not a file of registry logins"):
            find_login("host", "x")

    def test_a_file_that_is_too_large(self, file: Path) -> None:
        login = json.dumps({"auths": {"host": {"auth": "bWU6YTpi"}}})
        file.write_text(login.ljust(1 << 20))
        assert find_login("host", "x") is not None
        file.write_text(login.ljust((1 << 20) + 1))
        with pytest.raises(SpecError, match=r"cannot read .*: it has more than 1,048,576 bytes"):
            find_login("host", "x")

    @pytest.mark.parametrize("auth", ["bm9jb2xvbg==", "not base64!", "/////w=="])
    def test_an_entry_that_is_none(self, file: Path, auth: str) -> None:
        file.write_text(json.dumps({"auths": {"host": {"auth": auth}}}))
        with pytest.raises(SpecError, match=r"the entry for host in .* is not a login") as caught:
            find_login("host", "x")
        assert auth not in caught.value.message

    def test_files_in_their_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        places = ("home/.docker/config.json", "home/.config/containers/auth.json",
                  "run/containers/auth.json")  # fmt: skip
        assert find_login("host", "x") is None
        for place in places:
            path = tmp_path / place
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"auths": {"host": {"username": place}}}))
            login = find_login("host", "x")
            assert login is not None
            assert login.user == place

    @pytest.mark.parametrize("answer", ["echo nonsense", "echo '{\"Username\": 1}'"])
    def test_a_helper_that_says_nonsense(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
    ) -> None:
        helper = tmp_path / "docker-credential-odd"
        helper.write_text(f"#!/bin/sh\n{answer}\n")
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        file.write_text('{"credsStore": "odd"}')
        with pytest.raises(ToolFailed, match="docker-credential-odd answered with something"):
            find_login("host", "x")

    def test_a_helper_that_knows_nothing(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        helper = tmp_path / "docker-credential-empty"
        helper.write_text("#!/bin/sh\necho 'credentials not found'; exit 1\n")
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        file.write_text('{"credsStore": "empty"}')
        assert find_login("host", "x") is None


@pytest.mark.parametrize("realm", ["http://token.example/", "ftp://x/", "", "token"])
def test_a_login_goes_to_token_servers_by_https_only(
    realm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry, or who answers in its place, names where clients log in."""
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {"host": {"username": "me", "password": "pass-word"}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    asked: list[TokenChallenge] = []

    def fetch(one: TokenChallenge) -> bytes:
        asked.append(one)
        return b'{"token": "t"}'

    tokens = Tokens("host", fetch, allows_plain=False)
    scope = "repository:envs:pull"
    with pytest.raises(StoreError, match="which is not safe"):
        tokens.renew(f'Bearer realm="{realm}",service="s"', scope, None)
    assert not asked
    assert tokens.renew('Bearer realm="https://t.example/x?a=1"', scope, None) == "Bearer t"
    assert asked[0].url == "https://t.example/x?a=1&scope=repository%3Aenvs%3Apull"
    assert asked[0].authorization == "Basic bWU6cGFzcy13b3Jk"


@pytest.mark.parametrize(
    ("header", "scheme", "realm", "scope"),
    [
        ('Bearer realm="t",service="s",scope="a:pull,push b:pull"',
         "bearer", "t", "a:pull,push b:pull"),
        ("bearer realm=https://t/x, service=s", "bearer", "https://t/x", ""),
        ('BASIC realm="a, Bearer realm=\'t\'"', "basic", "a, Bearer realm='t'", ""),
        ('Basic realm="r", Bearer realm="t",scope="a:pull"', "bearer", "t", "a:pull"),
        ('Negotiate, Basic realm="r"', "basic", "r", ""),
        ("Negotiate abc=, Basic", "basic", "", ""),
    ],
)  # fmt: skip
def test_logins_that_servers_offer(header: str, scheme: str, realm: str, scope: str) -> None:
    """Several in one header, by RFC 7235; the one with tokens is preferred."""
    found = Challenge.of(header)
    assert found
    assert (found.scheme, found.realm, found.scope) == (scheme, realm, scope)


@pytest.mark.parametrize("header", ["", "Negotiate", "Digest realm=x"])
def test_logins_of_another_kind(header: str) -> None:
    assert Challenge.of(header) is None
    with pytest.raises(StoreError, match="of an unknown kind"):
        Tokens("host", lambda one: b"", allows_plain=True).renew(header, "repository:a:pull", None)
