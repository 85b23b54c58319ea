"""Packing an environment that nobody here built, with all that people leave in one."""

from __future__ import annotations

import configparser
import json
import os
import pickle
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.archive.reader import Archive, FileSource
from envferry.artifacts import read_artifact
from envferry.base.direct_io import DirectStream
from envferry.base.files import exclusive_lock
from envferry.errors import (
    HostError,
    IntegrityError,
    NotFound,
    SpecError,
    TargetOccupied,
    UsageError,
)
from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.models import SpecOptions
from envferry.pack.env_members import Listing
from envferry.pack.exclusion import Exclusion
from envferry.pack.existing_env import describe_env
from envferry.pack.pack_options import PackOptions
from envferry.pack.packages import conda_packages, pip_packages
from envferry.pack.stage import pack_env
from envferry.progress import Silent
from envferry.specs.locks import read_lock
from envferry.specs.reading import read_spec
from tests.support.environments import SITE, conda_record, pack, pack_and_install, pip_record
from tests.support.fat_binaries import container, elf_file
from tests.support.installing import install

if TYPE_CHECKING:
    from envferry.models import Artifact


NOBODY_ID = 65534
ODD_NAMES = ("with blanks", "with\na newline", "größe", "ファイル", "-dash", "a" * 200)


def test_everything_that_can_travel_does(tree: Path, envs: Path) -> None:
    data = tree / "share/data"
    data.mkdir(parents=True)
    for number, name in enumerate(ODD_NAMES):
        (data / name).write_bytes(b"%d" % number)
    (tree / "share/empty folder").mkdir()
    (data / "link").symlink_to("with blanks")
    (data / "folder-link").symlink_to("../empty folder")
    (data / "dangling").symlink_to("nothing")
    (data / "absolute").symlink_to(tree / "bin/tool")
    os.link(data / "with blanks", data / "hard")
    (data / "read-only").write_bytes(b"r")
    (data / "read-only").chmod(0o400)
    with (data / "sparse").open("wb") as stream:
        stream.truncate(30 << 20)
    moved = pack_and_install(tree, envs)
    for number, name in enumerate(ODD_NAMES):
        assert (moved / "share/data" / name).read_bytes() == b"%d" % number
    assert (moved / "share/empty folder").is_dir()
    assert (moved / "share/data/folder-link").is_dir()
    assert str((moved / "share/data/dangling").readlink()) == "nothing"
    assert str((moved / "share/data/absolute").readlink()) == f"{moved}/bin/tool"
    assert (moved / "share/data/hard").read_bytes() == b"0"
    assert (moved / "share/data/sparse").stat().st_size == 30 << 20
    assert stat.S_IMODE((moved / "bin/tool").stat().st_mode) == 0o755
    assert f"{moved}/lib\0".encode() in (moved / "bin/python").read_bytes()


def test_an_installed_environment_can_be_packed_again(tree: Path, envs: Path) -> None:
    moved = pack_and_install(tree, envs)
    assert (moved / "bin/conda-unpack").is_file()
    again = pack(moved.resolve().parent.parent.parent / "demo")
    with FileSource(again.archive_path) as source:
        paths = [entry.path for entry in Archive(source).index.files]
    assert len(paths) == len(set(paths))


def test_pip_packages_are_called_what_indexes_call_them(tree: Path) -> None:
    pip_record(tree, "Zope.Interface_x", {"zope/__init__.py": b""})
    artifact = pack(tree)
    names = [item.name for item in artifact.manifest.packages]
    assert "zope-interface-x" in names
    assert names == sorted(names)
    with FileSource(artifact.archive_path) as source:
        assert "zope-interface-x" in {item.name for item in Archive(source).index.packages}


def test_a_distribution_of_conda_without_installer_is_listed_once(tree: Path) -> None:
    info = tree / SITE / "bare-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bare\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    assert "bare" in {package.owner.name for package in pip_packages(tree)}
    files = [f"{SITE}/{info.name}/{name}" for name in ("METADATA", "RECORD")]
    record = {"name": "bare", "version": "1.0", "build": "0", "files": files}
    (tree / "conda-meta/bare-1.0-0.json").write_text(json.dumps(record))
    assert "bare" not in {package.owner.name for package in pip_packages(tree)}
    assert "bare" in {package.owner.name for package in conda_packages(tree)}


def test_what_rattler_put_aside_is_not_packed(tree: Path) -> None:
    aside = tree / "__clobbers__/other/share/x"
    aside.parent.mkdir(parents=True)
    aside.write_text("of another package\n")
    record = {
        "name": "other",
        "version": "1.0",
        "build": "0",
        "url": None,
        "files": ["__clobbers__/other/share/x"],
        "link": {"source": "", "type": 1},
    }
    (tree / "conda-meta/other-1.0-0.json").write_text(json.dumps(record))
    with FileSource(pack(tree).archive_path) as source:
        paths = {entry.path for entry in Archive(source).index.files}
    assert "conda-meta/other-1.0-0.json" in paths
    assert not {path for path in paths if path.startswith("__clobbers__")}


def test_a_package_cache_changes_nothing(tree: Path, tmp_path: Path) -> None:
    """The cache holds the files as they were before the prefix was put in."""
    cache = tmp_path / "pkgs/python-3.11.7-h1_0"
    (cache / "bin").mkdir(parents=True)
    (cache / "bin/python").write_bytes(b"\x7fELF\0" + b"x" * 255 + b"/lib\0")
    (cache / "info").mkdir()
    paths = {"paths_version": 1, "paths": [{"_path": "bin/python", "path_type": "hardlink"}]}
    (cache / "info/paths.json").write_text(json.dumps(paths))
    path = tree / "conda-meta/python-3.11.7-h1_0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "link": {"source": str(cache), "type": 1}}))
    with_cache = pack(tree)
    with FileSource(with_cache.archive_path) as source:
        index = Archive(source).index
    with FileSource(pack(tree).archive_path) as source:
        assert Archive(source).index == index
    assert {"bin/python", "bin/tool"} <= {entry.path for entry in index.files}


def test_one_pack_at_a_time_writes_an_archive(tree: Path) -> None:
    artifact = pack(tree)
    staged = artifact.directory / ".demo-linux-64.tar.zst"
    # What a killed one left, of whatever length, is written over.
    staged.write_bytes(bytes(1 << 20))
    assert pack(tree).manifest == artifact.manifest
    assert not staged.exists()
    with (
        exclusive_lock(staged, "it"),
        pytest.raises(TargetOccupied, match=r"the new archive of demo in .* is in use"),
    ):
        pack(tree)
    assert artifact.archive_path.is_file()


def test_what_cannot_travel_is_named_all_at_once(tree: Path) -> None:
    (tree / "share").mkdir()
    (tree / "share/out").symlink_to("/etc/passwd")
    (tree / "share/up").symlink_to("../../other")
    os.mknod(tree / "share/socket", 0o600 | stat.S_IFSOCK)
    os.mkfifo(tree / "share/pipe")
    (tree / SITE / "mine.pth").write_text("/home/me/project/src\n")
    info = pip_record(tree, "mywork", {})
    url = {"url": "file:///home/me/mywork", "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    conda_record(tree, "numpy", {f"{SITE}/numpy/gone.py": b""})
    (tree / SITE / "numpy/gone.py").unlink()
    pip_record(tree, "numpy", {"numpy/__init__.py": b""})
    with pytest.raises(SpecError) as caught:
        pack(tree)
    for part in (
        "'share/out' is a link to '/etc/passwd', outside",
        "'share/up' is a link to '../../other', outside",
        "'share/socket' is a socket",
        "'share/pipe' is a socket, pipe or device",
        f"{SITE}/mine.pth: adds /home/me/project/src",
        "mywork: installed as editable from file:///home/me/mywork",
        f"numpy 1.0 (conda) lacks {SITE}/numpy/gone.py; numpy 2.0 (pip) took its place",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize("record", ["null", "[]", '{"dir_info": null}', '{"dir_info": [1]}', "{"])
def test_an_origin_that_says_nothing_is_no_fault(tree: Path, record: str) -> None:
    (tree / SITE / "wheel-2.0.dist-info/direct_url.json").write_text(record)
    assert pack(tree)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{}",
        '{"name": "x", "version": "1", "build": "0"}',
        '{"name": "x", "version": "1", "build": "0", "files": 5}',
        '{"name": "x", "version": "1", "build": "0", "files": [], "paths_data": []}',
        '{"name": "x", "version": 1, "build": "0", "files": [], "paths_data": {"paths": [7]}}',
    ],
)
def test_a_record_of_conda_that_is_none_is_named(tree: Path, record: str) -> None:
    (tree / "conda-meta/x-1-0.json").write_text(record)
    with pytest.raises(SpecError, match=r"x-1-0\.json is not a valid record of a conda package"):
        pack(tree)


@pytest.mark.parametrize(
    ("file", "content"),
    [("RECORD", b"wheel/\xff.py,,\n"), ("METADATA", None), ("RECORD", b"x" * 200_000)],
)
def test_a_pip_package_that_is_damaged_is_named(
    tree: Path, file: str, content: bytes | None
) -> None:
    path = tree / SITE / "wheel-2.0.dist-info" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"wheel-2\.0\.dist-info"):
        pack(tree)


def test_a_pip_package_without_a_name_has_that_of_its_folder(tree: Path) -> None:
    (tree / SITE / "wheel-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\n")
    packages = pack(tree).manifest.packages
    assert [(item.name, item.version) for item in packages if item.kind == "pypi"] == [
        ("wheel", "2.0")
    ]


def test_a_pip_package_that_overwrote_conda_files_is_named(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conda_record(tree, "yaml", {f"{SITE}/yaml/__init__.py": b"conda"})
    pip_record(tree, "pyyaml", {"yaml/__init__.py": b"pip"})
    pack(tree)
    line = f"pyyaml 2.0 (pip) overwrites {SITE}/yaml/__init__.py of yaml (conda)"
    assert line in caplog.text


def test_its_lock_lists_what_it_holds(tree: Path) -> None:
    artifact = pack(tree)
    lock = read_lock(artifact.lock_path)
    assert [(item.name, item.version, item.md5) for item in lock.packages] == [
        ("python", "3.11.7", "0" * 32)
    ]
    assert "wheel==2.0" in artifact.lock_path.read_text()


def test_a_path_is_what_it_is_called(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From another folder, and an environment that is a link, as installed ones are."""
    tree.rename(tree.with_name("0123456789ab"))
    tree.symlink_to("0123456789ab")
    monkeypatch.chdir(tree / "bin")
    built = describe_env(Path("../../../envs/demo/."), prefix=None, name=None, lock_dir=tmp_path)
    assert (built.name, built.prefix) == ("demo", str(tree.with_name("demo")))
    with pytest.raises(UsageError, match="not an absolute path"):
        describe_env(tree, prefix="opt/demo", name=None, lock_dir=tmp_path)


def test_a_frozen_environment_says_what_to_do_instead(tree: Path, envs: Path) -> None:
    built = describe_env(tree, prefix=None, name=None, lock_dir=tree.parents[2] / "lock_dir")
    frozen = msgspec.structs.replace(built, options=SpecOptions(frozen=True))
    options = PackOptions(output_dir=tree.parents[2] / "lock_dir", mtime=315532800)
    artifact = pack_env(frozen, options=options, progress=Silent())
    install(artifact.archive_path, envs, artifact.manifest)
    conda = json.loads((envs / "demo/conda-meta/frozen").read_text())
    assert "specs/demo.yml" in conda["message"]
    pip = configparser.ConfigParser(interpolation=None)
    pip.read(envs / "demo/lib/python3.11/EXTERNALLY-MANAGED")
    assert pip["externally-managed"]["Error"] == conda["message"]
    # Packed again without the word, it is an ordinary environment.
    again = pack((envs / "demo").resolve().parents[2] / "demo")
    with FileSource(again.archive_path) as source:
        paths = {entry.path for entry in Archive(source).index.files}
    assert not {path for path in paths if "frozen" in path or "EXTERNALLY" in path}


def pack_without(tree: Path, *globs: str) -> Artifact:
    """Pack a tree without what these globs cover."""
    built = describe_env(tree, prefix=None, name=None, lock_dir=tree.parents[2] / "lock_dir")
    lean = msgspec.structs.replace(built, options=SpecOptions(exclude=globs))
    options = PackOptions(output_dir=tree.parents[2] / "lock_dir", mtime=315532800)
    return pack_env(lean, options=options, progress=Silent())


def test_what_is_excluded_is_gone_from_lists_too(
    tree: Path, envs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = f"{SITE}/conda_tool/tests/__pycache__/test_a.cpython-311.pyc"
    files = {
        "share/doc/tool/a.html": b"a",
        "share/doc/b.html": b"b",
        "share/docs.txt": b"kept",
        "lib/libtool.a": b"archive",
        "lib/deep/libtool.a": b"kept: not in lib itself",
        f"{SITE}/conda_tool/tests/test_a.py": b"",
        cache: b"",
        f"{SITE}/conda_tool-1.0.dist-info/RECORD": (
            b"conda_tool/tests/test_a.py,sha256=x,0\nconda_tool-1.0.dist-info/RECORD,,\n"
        ),
        f"{SITE}/conda_tool-1.0.dist-info/INSTALLER": b"conda\n",
    }
    paths = [{"_path": path, "sha256_in_prefix": "0"} for path in sorted(files)]
    conda_record(tree, "tool", files, paths_data={"paths": paths})
    pip_record(tree, "pkg", {"pkg/__init__.py": b"", "pkg/tests/test_b.py": b""})
    artifact = pack_without(tree, "share/doc/", "lib/*.a", "**/tests/**", "nowhere/*", "conda-meta")
    install(artifact.archive_path, envs, artifact.manifest)
    moved = envs / "demo"
    kept = {"share/docs.txt", "lib/deep/libtool.a", *(path for path in files if "-info/" in path)}
    assert {path for path in files if (moved / path).exists()} == kept
    assert not (moved / SITE / "pkg/tests").exists()
    record = json.loads((moved / "conda-meta/tool-1.0-h1_0.json").read_text())
    assert {*record["files"]} == kept
    listed = {entry["_path"]: entry for entry in record["paths_data"]["paths"]}
    assert {*listed} == kept
    # Its RECORD changed, so that no checksum is better than the old one.
    assert {path for path, entry in listed.items() if "sha256_in_prefix" not in entry} == {
        f"{SITE}/conda_tool-1.0.dist-info/RECORD"
    }
    lines = (moved / SITE / "pkg-2.0.dist-info/RECORD").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "pkg/__init__.py",
        *(f"pkg-2.0.dist-info/{name}" for name in ("METADATA", "INSTALLER", "RECORD")),
    ]
    found = verify_installation(EnvHome.of(envs, "demo"), None, quick=False, progress=Silent())
    assert found.differences == ()
    assert "`nowhere/*` under" in caplog.text
    assert "`**/tests/**`" not in caplog.text


def test_excluding_nothing_changes_nothing(tree: Path) -> None:
    assert pack_without(tree, "nowhere").manifest.id == pack(tree).manifest.id


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("share/doc/**", "share/doc/a/b", True),
        ("share/doc", "share/doc/a/b", True),
        ("share/doc", "share/docs", False),
        ("**/tests", "tests/a", True),
        ("**/tests", "lib/python3.11/x/tests/a", True),
        ("**/tests", "lib/mytests/a", False),
        ("*.a", "lib/x.a", False),
        ("**/*.a", "x.a", True),
        ("lib/[a-c]?.so", "lib/bx.so", True),
        ("lib/[!a-c]?.so", "lib/bx.so", False),
        ("a+b/(c)", "a+b/(c)", True),
        ("**", "conda-meta/history", False),
        ("**", "lib/python3.11/site-packages/x-1.0.dist-info/RECORD", False),
        ("lib/a.py", "lib/__pycache__/a.cpython-311.opt-1.pyc", True),
        ("lib/a.py", "lib/__pycache__/ab.cpython-311.pyc", False),
    ],
)
def test_globs(glob: str, path: str, expected: bool) -> None:
    assert Exclusion([glob]).covers(path) is expected


def test_what_is_no_glob() -> None:
    with pytest.raises(SpecError, match="is not a valid glob"):
        Exclusion(["lib/[z-a]"])


def test_what_is_no_environment(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(NotFound, match="no conda-meta"):
        describe_env(tmp_path, prefix=None, name=None, lock_dir=tmp_path)
    (tree / "conda-meta/broken.json").write_text("{")
    with pytest.raises(SpecError, match=r"broken\.json is not a valid record"):
        describe_env(tree, prefix=None, name=None, lock_dir=tmp_path)


def test_a_spec_may_say_frozen(tmp_path: Path) -> None:
    path = tmp_path / "demo.yml"
    for word, expected in (("true", True), ("false", False)):
        text = f"name: demo\nchannels: [c]\ndependencies: [python]\nenvferry: {{frozen: {word}}}\n"
        path.write_text(text)
        assert read_spec(path).options.frozen is expected
    path.write_text(text.replace("false", "perhaps"))
    with pytest.raises(SpecError, match="frozen"):
        read_spec(path)


def listed_paths(artifact: Artifact) -> list[str]:
    """Return the paths in the archive of an artifact."""
    with FileSource(artifact.archive_path) as source:
        return [entry.path for entry in Archive(source).index.files]


def test_site_packages_behind_a_link_are_packed_once(tree: Path, envs: Path) -> None:
    """conda-forge's Python 3.10 and newer ship `lib/python3.1`."""
    (tree / "lib/python3.1").symlink_to("python3.11")
    # As conda's package of wheel 0.41.3 has it: a RECORD, and no INSTALLER that says conda.
    conda_record(tree, "conda-wheel", {f"{SITE}/cw-1.0.dist-info/METADATA": b"Name: cw\n"})
    (tree / SITE / "cw-1.0.dist-info/RECORD").write_text("cw-1.0.dist-info/METADATA,,\n")
    artifact = pack(tree)
    paths = listed_paths(artifact)
    assert len(paths) == len(set(paths))
    assert not [path for path in paths if path.startswith("lib/python3.1/")]
    assert [item.name for item in artifact.manifest.packages].count("wheel") == 1
    moved = pack_and_install(tree, envs)
    assert (moved / "lib/python3.1/site-packages/wheel/__init__.py").read_bytes() == b"x = 1\n"


def test_files_listed_behind_a_link_belong_to_their_package(tree: Path) -> None:
    (tree / "lib64").symlink_to("lib")
    conda_record(tree, "old", {})
    (tree / "lib/old.so").write_bytes(b"so")
    path = tree / "conda-meta/old-1.0-h1_0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "files": ["lib64/old.so"]}))
    artifact = pack(tree)
    with FileSource(artifact.archive_path) as source:
        index = Archive(source).index
    [run] = [item for item in index.packages if item.name == "old"]
    files = index.files[run.first_file : run.first_file + run.files]
    assert "lib/old.so" in {entry.path for entry in files}
    assert {item.name: item.size for item in artifact.manifest.packages}["old"] > 0


def test_a_file_of_two_conda_packages_is_packed_once(tree: Path, envs: Path) -> None:
    shared = {"lib/shared.txt": b"both"}
    for name in ("one", "two"):
        conda_record(tree, name, {**shared, f"lib/{name}.txt": b"own"})
    paths = listed_paths(pack(tree))
    assert paths.count("lib/shared.txt") == 1
    assert (pack_and_install(tree, envs) / "lib/shared.txt").read_bytes() == b"both"


def test_links_that_install_refuses_are_named(tree: Path) -> None:
    (tree / "lib/a").symlink_to("b")
    (tree / "lib/b").symlink_to("a")
    (tree / "lib/climbs").symlink_to(f"{tree}/../outside")
    (tree / "lib/by-folder").symlink_to("..")
    (tree / "lib/through").symlink_to("by-folder/../outside")
    with pytest.raises(SpecError) as caught:
        pack(tree)
    for part in (
        "'lib/a' is a link to 'b', which is circular",
        "'lib/b' is a link to 'a', which is circular",
        f"'lib/climbs' is a link to '{tree}/../outside', outside the environment",
        "'lib/through' is a link to 'by-folder/../outside', outside the environment",
    ):
        assert part in caught.value.message
    assert "by-folder' is a link to '..'" not in caught.value.message


def test_a_virtual_environment_whose_python_is_elsewhere_is_refused(tree: Path) -> None:
    (tree / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    with pytest.raises(SpecError, match=r"pyvenv\.cfg: .* at /usr/bin, outside"):
        pack(tree)
    (tree / "pyvenv.cfg").write_text(f"home = {tree}/bin\n")
    pack(tree)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user: root may read everything")
def test_what_cannot_be_read_is_named(tree: Path) -> None:
    (tree / "lib/closed").mkdir(mode=0)
    (tree / "lib/secret").write_bytes(b"s")
    (tree / "lib/secret").chmod(0o600)
    Listing(tree, str(tree))
    open_up(tree)
    os.seteuid(NOBODY_ID)
    try:
        with pytest.raises(SpecError) as caught:
            Listing(tree, str(tree))
    finally:
        os.seteuid(0)
    assert "the folder 'lib/closed' cannot be read: Permission denied" in caught.value.message
    assert "'lib/secret' cannot be read: Permission denied" in caught.value.message


def open_up(tree: Path) -> None:
    """Let other users pass the folders that pytest made for one alone."""
    for parent in tree.parents:
        if parent.owner() == "root" and not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "depth", "reason"),
    [("d", 1500, "parts, at most 256"), ("d" * 100, 60, "bytes long, which is too long")],
)
def test_paths_that_no_host_takes_are_named(
    tree: Path, name: str, depth: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    for _ in range(depth):
        os.mkdir(name)  # noqa: PTH102  (no path is as long as that)
        os.chdir(name)
    monkeypatch.chdir(tree.parent)
    with pytest.raises(SpecError) as caught:
        pack(tree)
    assert f"the path '{name}" in caught.value.message
    assert reason in caught.value.message
    assert len(caught.value.message) < 1000
    subprocess.run(["rm", "-rf", tree], check=True)  # pytest's own way is recursive


def test_what_was_written_is_read_back(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not keep what it was given: no archive is left, and no success is said."""
    flush = DirectStream.flush

    def lose_a_byte(stream: DirectStream) -> None:
        flush(stream)
        os.pwrite(stream.descriptor, b"\0", stream.offset - 3)

    monkeypatch.setattr(DirectStream, "flush", lose_a_byte)
    with pytest.raises(IntegrityError, match="seek table"):
        pack(tree)
    assert [path.name for path in (tree.parents[2] / "lock_dir").glob("*zst*")] == []


def test_what_keeps_the_prefix_is_named(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "lib/settings.pkl").write_bytes(pickle.dumps({"home": str(tree)}))
    manifest = pack(tree).manifest
    assert manifest.keeps_prefix == ("lib/settings.pkl",)
    assert (
        "lib/settings.pkl contains the prefix, which is not replaced: it is a pickle" in caplog.text
    )


def test_code_for_gpus_is_noted_and_compared(
    tree: Path, envs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the library's headers to the host that has another GPU."""
    assert b"cuda_code" not in pack(tree).manifest_path.read_bytes()
    code = container("sm_80", "sm_90", "compute_90")
    library = elf_file([(".text", bytes(5000)), (".nv_fatbin", code)])
    pip_record(tree, "torch", {"torch/lib/libtorch_cuda.so": library})
    artifact = pack(tree)
    assert read_artifact(artifact.archive_path).manifest.gpu_code == {
        "torch": ("compute_90", "sm_80", "sm_90")
    }
    smi = tmp_path / "driver/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\necho "7.5, Tesla T4"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    with pytest.raises(HostError, match=r"torch has code for .* none for this host's Tesla T4"):
        install(artifact.archive_path, envs, artifact.manifest)
    assert not (envs / "demo").exists()
    smi.write_text('#!/bin/sh\necho "12.0, RTX PRO 6000"\n')  # which compiles the PTX
    install(artifact.archive_path, envs, artifact.manifest)
    assert (envs / "demo").exists()


def test_a_directory_is_its_packages_where_all_in_it_is(tree: Path) -> None:
    conda_record(tree, "headers", {"include/a/x.h": b"x", "include/b.h": b"b", "share/h/x": b""})
    conda_record(tree, "more", {"include/a/y.h": b"y", "share/m/deep/er/x": b""})
    (tree / "share/m/empty").mkdir()
    listing = Listing(tree, str(tree))
    owners = {
        member.entry.path: member.owner.name
        for member in listing.members
        if member.entry.type == "directory"
    }
    assert {path: name for path, name in owners.items() if path.startswith(("in", "sh"))} == {
        "include": "",
        "include/a": "",
        "share": "",
        "share/h": "headers",
        "share/m": "",
        "share/m/deep": "more",
        "share/m/deep/er": "more",
        "share/m/empty": "",
    }
    assert owners[f"{SITE}/wheel-2.0.dist-info"] == "wheel"
