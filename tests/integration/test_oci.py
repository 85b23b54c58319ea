"""OCI registries: the store suite on docker-registry, and the images that others find there."""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import shutil
import tarfile
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from envferry.base.files import write_bytes
from envferry.base.json import to_json
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.names import Ref, current_platform
from envferry.process import run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.registry.runnable_image import find_base_image, publish_runnable
from envferry.stores.oci.base_image import MOST_CONFIG
from envferry.stores.oci.client import RegistryClient
from envferry.stores.oci.documents import (
    CONFIG,
    MANIFEST,
    describe,
    digest_of,
    encode,
    image_manifest,
)
from envferry.stores.oci.image_layout import LayoutRepositories
from envferry.stores.oci.sending import send_bytes
from envferry.stores.opening import open_store
from envferry.transfer.export import ExportRequest, export_artifacts
from envferry.transfer.mirror import MirrorRequest, mirror_registry
from tests.conftest import require
from tests.support.cli_runner import CliRunner
from tests.support.containers import containerd, podman_storage
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.oci_registry import find_oci_program
from tests.support.packed import pack, random_bytes
from tests.support.store_suite import StoreSuite

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Artifact
    from envferry.stores.port import Store
    from tests.support.oci_registry import OciServer

pytestmark = pytest.mark.oci
LARGE, SMALL = 9 << 20, 1 << 20


class TestDockerRegistry(StoreSuite):
    """No registry has conditions on writes: each write is looked at afterwards."""

    completes_atomically = False
    decides_races = False

    @pytest.fixture
    def store(self, oci_url: str) -> Store:
        return open_store(oci_url)


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """Two versions of an environment that differ in one package of two."""
    first, second = (
        pack(
            tmp_path / str(seed),
            {"kept": random_bytes(1, LARGE), "changed": random_bytes(seed, SMALL)},
        )
        for seed in (2, 3)
    )
    return first, second


@pytest.fixture
def host(oci_url: str, tmp_path: Path) -> CliRunner:
    """A machine with a pair of keys that trusts what they sign."""
    trusted = tmp_path / "trusted.d"
    environ = {
        "ENVFERRY_REGISTRY": oci_url,
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
        "ENVFERRY_TRUSTED_DIR": str(trusted),
    }
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    host.run("keygen", "ours")
    trusted.mkdir()
    shutil.copy(tmp_path / "ours.pub", trusted)
    return host


def test_every_command_on_a_registry(
    host: CliRunner, oci_url: str, versions: tuple[Artifact, Artifact]
) -> None:
    """Signed, installed, updated by difference, mirrored both ways, checked and pruned."""
    first, second = versions
    old, new = first.manifest.id, second.manifest.id
    host.run("push", first.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    host.run("install", "demo@stable", "--no-check")
    host.run("push", second.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    said = host.run("install", "demo@stable", "--no-check").stderr
    assert "2 of 5 frames" in said, "only what has changed is read, by ranges"
    installed = host.home / "envs/demo/lib/changed.bin"
    assert installed.read_bytes() == random_bytes(3, SMALL)
    host.run("fetch", "demo", "-o", "out")
    fetched = host.home / "out" / second.archive_path.name
    assert fetched.read_bytes() == second.archive_path.read_bytes()
    host.run("push", first.archive_path, "--tag", "stable", expect=2)  # the tag is signed

    registry = Registry.open(oci_url)
    assert {(one.id, one.tags, one.attested) for one in registry.environments()} == {
        (old, (), True),
        (new, ("latest", "stable"), True),
    }
    copy, back = Registry.open(str(host.home / "copy")), Registry.open(f"{oci_url}/second")
    for source, target in ((registry, copy), (copy, back)):
        found = mirror_registry(
            source, target, MirrorRequest(), journals=host.home / "journals", progress=Silent()
        )
        assert len(found.copied) == 2
    for one in (registry, copy, back):
        assert check_registry(one, read_bytes=True, progress=Silent()).findings == ()

    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
    now = datetime.now(timezone.utc) + timedelta(seconds=5)
    carry_out(registry, plan_prune(registry, Scope(), policy, now), progress=Silent())
    assert [one.id for one in registry.environments()] == [new]
    registry = Registry.open(oci_url)  # as another command
    assert registry.publish(first, progress=Silent()), "what was pruned comes back"
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


def test_others_find_an_image(
    oci_server: OciServer, oci_url: str, versions: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    """What was pushed is unpacked by containerd and podman, and copied by skopeo, as it is."""
    artifact = versions[0]
    push_artifact(artifact, registry=Registry.open(oci_url), tags=("stable",), progress=Silent())
    path = oci_url.removeprefix("oci://")
    image = f"{path}/demo:stable"
    require("oci", os.geteuid() == 0 and find_oci_program("ctr"))
    with containerd(tmp_path / "containerd") as server:
        server.ctr("images", "pull", "--plain-http", "--snapshotter", "native", image)
        with server.mounted(image) as place:
            assert (place / "lib/kept.bin").read_bytes() == random_bytes(1, LARGE)
    require("oci", os.geteuid() == 0 and shutil.which("podman"))
    with podman_storage() as podman:
        podman.run("pull", "--tls-verify=false", image)
        with podman.mounted(image) as place:
            assert (place / "lib/changed.bin").read_bytes() == random_bytes(2, SMALL)
    require("oci", shutil.which("skopeo"))
    copied = tmp_path / "copied"
    run(("skopeo", "copy", "--src-tls-verify=false", f"docker://{image}", f"dir:{copied}"))
    (layer,) = json.loads((copied / "manifest.json").read_bytes())["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
    blob = copied / layer["digest"].removeprefix("sha256:")
    assert blob.read_bytes() == artifact.archive_path.read_bytes(), "the archive is the layer"


def test_equal_archives_are_equal_images(
    oci_server: OciServer, oci_url: str, versions: tuple[Artifact, Artifact]
) -> None:
    """Whenever they are pushed, and where: a digest that somebody has noted stays right.

    Also where `pack` has not computed the digest of what the archive holds.
    """
    require("oci", shutil.which("skopeo"))
    digests = set()
    artifact = versions[0]
    facts = replace(artifact.manifest.archive, tar_sha256="")
    unhashed = replace(artifact, manifest=replace(artifact.manifest, archive=facts))
    assert unhashed.manifest != artifact.manifest
    tag = f"{current_platform()}-{artifact.manifest.id}"
    places = {oci_url: artifact, f"{oci_url}/other": artifact, f"{oci_url}/third": unhashed}
    for url, one in places.items():
        write_bytes(one.manifest_path, to_json(one.manifest))
        push_artifact(one, registry=Registry.open(url), tags=(), progress=Silent())
        said = run(("skopeo", "inspect", "--raw", "--tls-verify=false",
                    f"docker://{url.removeprefix('oci://')}/demo:{tag}")).stdout  # fmt: skip
        digests.add(said)
    assert len(digests) == 1


def test_a_layout_for_other_tools(
    oci_server: OciServer, oci_url: str, versions: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    """What `export --oci` writes is loaded by skopeo, podman and containerd, and by ourselves."""
    artifact = versions[0]
    registry = Registry.open(oci_url)
    push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
    order = ExportRequest(
        refs=(Ref.parse("demo@stable"),),
        platform=current_platform(),
        tags=("stable",),
        as_images=True,
    )
    layout = tmp_path / "layout"
    export_artifacts(registry, layout, order, journals=tmp_path / "journals", progress=Silent())
    require("oci", shutil.which("skopeo"))
    loaded = f"{oci_url.removeprefix('oci://')}/loaded:stable"
    run(("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:demo:stable",
         f"docker://{loaded}"))  # fmt: skip
    require("oci", os.geteuid() == 0 and shutil.which("podman"))
    with podman_storage() as podman:
        said = podman.run("load", "-i", layout).stdout
        with podman.mounted(said.split()[-1]) as place:
            assert (place / "lib/changed.bin").read_bytes() == random_bytes(2, SMALL)
    require("oci", os.geteuid() == 0 and find_oci_program("ctr"))
    archive = tmp_path / "layout.tar"
    run(("tar", "-cf", archive, "-C", layout, "."))
    with containerd(tmp_path / "containerd") as server:
        server.ctr("images", "import", "--snapshotter", "native", archive)
        (image,) = server.ctr("images", "ls", "-q").stdout.split()
        assert image == "demo:stable"
        with server.mounted(image) as place:
            assert (place / "lib/kept.bin").read_bytes() == random_bytes(1, LARGE)
    site = Registry.open(str(tmp_path / "site"))
    mirror_registry(
        Registry.open(str(layout)),
        site,
        MirrorRequest(),
        journals=tmp_path / "journals",
        progress=Silent(),
    )
    assert check_registry(site, read_bytes=True, progress=Silent()).findings == ()
    assert site.tags("demo", current_platform()) == {"stable": artifact.manifest.id}


@pytest.mark.parametrize("target", ["server", "layout"])
def test_layers_are_shared_and_read_as_one(
    oci_server: OciServer, oci_url: str, tmp_path: Path, target: str
) -> None:
    """Of another version, and of another environment, only the layers are sent that changed."""
    plan = Plan(upstream=oci_server.url)
    with fault_proxy(plan) as proxy:
        path = oci_url.removeprefix("oci://").partition("/")[2]
        url = f"oci://{proxy.removeprefix('http://')}/{path}"
        if target == "layout":
            url = str(tmp_path / "layout")
            LayoutRepositories.create(tmp_path / "layout")
        registry = replace(Registry.open(url), layers=6)
        packages = {f"p{number}": random_bytes(number, SMALL) for number in range(4)}
        made = []
        for name, changed in (("demo", 7), ("demo", 8), ("other", 8)):
            contents = {**packages, "p2": random_bytes(changed, SMALL)}
            artifact = pack(tmp_path / f"{name}-{changed}", contents, name=name)
            plan.sent.clear()
            push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
            made.append(plan.sent_bytes)
        if target == "server":
            assert made[0] > 4 * SMALL
            assert SMALL < made[1] < SMALL * 1.2
            assert made[2] < SMALL * 0.2
        assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()
        copy = Registry.open(str(tmp_path / "copy"))
        mirror_registry(registry, copy, MirrorRequest(), journals=tmp_path, progress=Silent())
        back = replace(Registry.open(f"{oci_url}/back"), layers=6)
        mirror_registry(copy, back, MirrorRequest(), journals=tmp_path, progress=Silent())
        assert check_registry(back, read_bytes=True, progress=Silent()).findings == ()
    if target == "server":
        host = CliRunner(home=tmp_path, cache=tmp_path / "cache",
                         environ={"ENVFERRY_REGISTRY": oci_url})  # fmt: skip
        host.run("install", "demo@stable", "--envs-dir", "envs", "--no-check")
        assert (tmp_path / "envs/demo/lib/p2.bin").read_bytes() == random_bytes(8, SMALL)
        require_unpacked(f"{oci_url.removeprefix('oci://')}/other:stable", tmp_path)


def require_unpacked(image: str, tmp_path: Path) -> None:
    """Have containerd and podman put the layers of an image together."""
    require("oci", os.geteuid() == 0 and find_oci_program("ctr"))
    with containerd(tmp_path / "containerd") as server:
        server.ctr("images", "pull", "--plain-http", "--snapshotter", "native", image)
        with server.mounted(image) as place:
            assert len(list((place / "lib").iterdir())) == 4
    require("oci", os.geteuid() == 0 and shutil.which("podman"))
    with podman_storage() as podman:
        podman.run("pull", "--tls-verify=false", image)
        with podman.mounted(image) as place:
            assert (place / "lib/p2.bin").read_bytes() == random_bytes(8, SMALL)


@pytest.fixture
def base_image(oci_server: OciServer, tmp_path: Path) -> str:
    """An image of a system that has one file, as docker's tools write them, in another path."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("etc/os-release")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"ID=x"))
    packed = gzip.compress(layer.getvalue(), mtime=0)
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin", "LANG=C"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer.getvalue())]},
            "history": [{"created_by": "somebody"}],
        }
    )
    space = RegistryClient.of(oci_server.url)
    place = f"base-{secrets.token_hex(4)}"
    layers = (describe(packed, "application/vnd.oci.image.layer.v1.tar+gzip"),)
    send_bytes(space, place, packed, layers[0])
    send_bytes(space, place, config, describe(config, CONFIG))
    manifest = image_manifest(config=describe(config, CONFIG), layers=layers)
    space.put_manifest(place, "12", manifest, MANIFEST)
    return f"{oci_server.host}/{place}:12"


def test_an_environment_on_top_of_a_system(
    oci_url: str, versions: tuple[Artifact, Artifact], base_image: str
) -> None:
    """Deterministic, base layers mounted, the environment at its prefix and on PATH."""
    require("oci", os.geteuid() == 0 and shutil.which("podman"))
    artifact, digests = versions[0], set()
    for url in (oci_url, f"{oci_url}/again"):
        registry = Registry.open(url)
        push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
        base = find_base_image(registry, artifact.manifest, base_image)
        names = publish_runnable(artifact, base, ("stable",), Silent())
        assert names[0] == f"{url.removeprefix('oci://')}/demo:run.stable"
        said = run(("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{names[1]}"))
        digests.add(said.stdout)
    assert len(digests) == 1
    with podman_storage() as podman:
        podman.run("pull", "--tls-verify=false", names[0])
        (facts,) = json.loads(podman.run("image", "inspect", names[0]).stdout)
        assert facts["Config"]["Cmd"] == ["sh"]
        assert "PATH=/opt/conda/envs/demo/bin:/bin" in facts["Config"]["Env"]
        with podman.mounted(names[0]) as place:
            assert (place / "etc/os-release").read_bytes() == b"ID=x"
            inside = place / "opt/conda/envs/demo/lib"
            assert (inside / "kept.bin").read_bytes() == random_bytes(1, LARGE)
            assert (inside / "changed.bin").read_bytes() == random_bytes(2, SMALL)
    # It goes with the artifact that it was made of.
    registry.publish(versions[1], progress=Silent())
    for tag in ("stable", "latest"):
        registry.move_tag("demo", current_platform(), tag, versions[1].manifest.id)
    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
    now = datetime.now(timezone.utc) + timedelta(seconds=5)
    carry_out(registry, plan_prune(registry, Scope(), policy, now), progress=Silent())
    left = set(RegistryClient.of(registry.url.replace("oci", "http").rsplit("/", 2)[0]).tags(
        f"{registry.url.split('/', 3)[3]}/demo"))  # fmt: skip
    assert {"stable", "latest"} <= left
    assert not [tag for tag in left if tag.startswith("run.")]


@pytest.mark.parametrize(
    ("base", "error", "words"),
    [
        ("debian", UsageError, "is not the name of an image in a registry"),
        ("HOST/Debian:12", UsageError, "is not the name of an image"),
        ("HOST/none:12", NotFound, "the image .*none:12 is not at"),
    ],
)
def test_bases_that_are_none(
    oci_server: OciServer,
    oci_url: str,
    versions: tuple[Artifact, Artifact],
    base: str,
    error: type[Exception],
    words: str,
) -> None:
    base = base.replace("HOST", oci_server.host)
    with pytest.raises(error, match=words):
        find_base_image(Registry.open(oci_url), versions[0].manifest, base)


def test_a_base_whose_configuration_is_too_long(
    oci_server: OciServer, oci_url: str, versions: tuple[Artifact, Artifact]
) -> None:
    space, place = RegistryClient.of(oci_server.url), f"base-{secrets.token_hex(4)}"
    data = encode({"padding": "x" * MOST_CONFIG})
    config = describe(data, CONFIG)
    send_bytes(space, place, data, config)
    space.put_manifest(place, "12", image_manifest(config=config, layers=()), MANIFEST)
    name = f"{oci_server.host}/{place}:12"
    with pytest.raises(IntegrityError, match=f"the configuration of {name} has 4,194,3.. bytes"):
        find_base_image(Registry.open(oci_url), versions[0].manifest, name)
