"""The Python interface: what it exports, what it loads, and its errors."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envferry import api
from envferry.registry import Registry
from tests.support.keys import key_files
from tests.support.packed import pack
from tests.support.published import Made, publish

if TYPE_CHECKING:
    from pathlib import Path

BUILD_LIBRARIES = {"conda_lock", "conda_pack", "rattler", "boto3", "yaml", "uv", "cryptography"}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with two versions of one environment; it is the one of the settings, too."""
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENVFERRY_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("ENVFERRY_TRUSTED_DIR", "/dev/null")
    registry = Registry.open(str(tmp_path / "registry"))
    for seed, tag in ((1, "stable"), (2, "candidate")):
        publish(registry, tmp_path / f"made-{seed}", Made(seed=seed), tag)
    return str(tmp_path / "registry")


def test_every_function_is_typed_and_says_what_it_raises() -> None:
    functions = [getattr(api, name) for name in api.__all__ if name.islower()]
    assert len(functions) > 10
    for function in functions:
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        for one in signature.parameters.values():
            assert one.annotation is not inspect.Parameter.empty
        assert "Raises " in (inspect.getdoc(function) or ""), function.__name__


def test_every_expected_error_is_exported() -> None:
    errors = {one.__name__ for one in api.PipelineError.__subclasses__()}
    assert errors <= set(api.__all__)


def test_what_a_host_imports_loads_no_library_of_a_build_machine() -> None:
    script = "import sys\nfrom envferry import api\nprint('\\n'.join(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not BUILD_LIBRARIES & {name.split(".")[0] for name in said.stdout.splitlines()}


def test_queries_read_the_registry_of_the_settings(url: str) -> None:
    assert [one.tags for one in api.ls(api.Filter(tag="stable"))] == [("stable",)]
    assert {one.id for one in api.find("torch>=2.8")} == {one.id for one in api.ls(registry=url)}
    assert api.find("torch<2") == ()
    assert api.show("demo@stable").id == api.ls(api.Filter(tag="stable"))[0].id


def test_a_registry_is_opened_once_for_many_questions(url: str) -> None:
    registry = api.open_registry(url)
    manifest = api.show("demo@candidate", registry=registry)
    assert api.show(f"demo@{manifest.id}", registry=registry) == manifest


def test_errors_have_a_hint_and_a_code(url: str) -> None:
    with pytest.raises(api.NotFound, match="stabl") as caught:
        api.show("demo@stabl")
    assert "did you mean `stable`" in caught.value.hint
    assert caught.value.exit_code == 7
    with pytest.raises(api.UsageError, match="is not a valid"):
        api.install("a b")
    with pytest.raises(api.NotFound, match="is not built"):
        api.pack("nothing")
    with pytest.raises(api.NotFound, match="nothing"):
        api.read_lock("nothing")


def test_install_takes_an_artifact_a_path_or_a_ref(url: str, tmp_path: Path, envs: Path) -> None:
    artifact = pack(tmp_path / "packed", {"one": b"1" * 100})
    api.push(artifact, tags=("here",))
    options = api.InstallOptions(envs_dir=envs)
    first = api.install(artifact, options)
    assert first.origin
    assert first.origin.source == str(artifact.archive_path)
    assert api.install(artifact.archive_path, options).id == first.id
    fetched = api.fetch("demo@here", tmp_path / "usb")
    assert fetched.manifest == artifact.manifest
    again = api.install("demo@here", options, registry=api.open_registry(url))
    assert again.origin
    assert (again.id, again.origin.tag) == (first.id, "here")
    assert api.verify("demo", envs_dir=envs).differences == ()
    (envs / "demo/lib/one.bin").unlink()
    found = api.verify(f"demo@{first.id}", envs_dir=envs, quick=True)
    assert [(one.kind, one.path) for one in found.differences] == [("missing", "lib/one.bin")]


def test_a_host_with_keys_takes_what_they_signed(url: str, tmp_path: Path, envs: Path) -> None:
    ours, public = key_files(tmp_path / "ours")
    _, theirs = key_files(tmp_path / "theirs")
    artifact = pack(tmp_path / "packed", {"one": b"1" * 100})
    signed = str(tmp_path / "signed")
    api.push(artifact, registry=api.open_registry(signed, sign_keys=[ours]))
    options = api.InstallOptions(envs_dir=envs)
    assert api.install("demo", options, registry=signed, trusted_keys=[public]).origin
    assert api.verify_signature("demo", registry=signed, trusted_keys=[public]).signed_by
    with pytest.raises(api.IntegrityError):
        api.install("demo", options, registry=signed, trusted_keys=[theirs])
    with pytest.raises(api.IntegrityError):
        api.show("demo", registry=api.open_registry(signed, trusted_keys=[theirs]))
    with pytest.raises(api.IntegrityError):
        api.verify_signature("demo", registry=signed, trusted_keys=[theirs])
    with pytest.raises(api.UsageError, match="no trusted keys"):
        api.verify_signature("demo", registry=signed)


def test_the_keys_of_an_opened_registry_hold_for_installs(
    url: str, tmp_path: Path, envs: Path
) -> None:
    ours, public = key_files(tmp_path / "ours")
    _, theirs = key_files(tmp_path / "theirs")
    artifact = pack(tmp_path / "packed", {"one": b"1" * 100})
    signed = str(tmp_path / "signed")
    api.push(artifact, registry=api.open_registry(signed, sign_keys=[ours]))
    options = api.InstallOptions(envs_dir=envs)
    strict = api.open_registry(signed, trusted_keys=[theirs])
    with pytest.raises(api.IntegrityError, match="not signed by a trusted key"):
        api.install("demo", options, registry=strict)
    with pytest.raises(api.IntegrityError, match="not signed by a trusted key"):
        api.verify_signature("demo", registry=strict)
    known = api.open_registry(signed, trusted_keys=[public])
    origin = api.install("demo", options, registry=known).origin
    assert origin
    assert origin.signed_by
    assert api.verify_signature("demo", registry=known).signed_by
