"""What the accepted standards of conda (CEP) and Python (PEP) ask for, in their words."""

from __future__ import annotations

import configparser
import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from envferry.archive.index import FileEntry
from envferry.build.inside.builder import write_state
from envferry.channel.conda_package import CondaPackage
from envferry.channel.virtual_env import record_of
from envferry.errors import SpecError
from envferry.lock.conda.conda_messages import CondaRequest, SpecAsWritten
from envferry.lock.conda.conda_solver import virtual_packages
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.models import LockedPackage, SpecOptions, SystemRequirements
from envferry.names import current_platform
from envferry.pack.frozen import frozen_members
from envferry.pack.generated import content_of
from envferry.progress import Silent
from envferry.specs.importing.conversion import Imported, ImportOptions, import_spec
from envferry.specs.locks import LockContents, parse_lock, read_lock, render_lock, write_lock
from envferry.specs.reading import parse_spec, read_spec
from tests.support.channel_indexes import FORMS, indexes
from tests.support.repodata_channels import LINUX, record, write_channel
from tests.support.solving import solution
from tests.support.tiny_channel import TinyPackage, make_channel

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER_DIGEST = "ef" * 32
SHA = "ab" * 32


def spec(text: str, tmp_path: Path) -> Spec:
    return parse_spec(text, tmp_path / "test.yml")


# CEP 24: environment.yml


@pytest.mark.parametrize(
    ("text", "conda"),
    [
        ("dependencies:\n  - numpy\n", ("numpy",)),
        ("name: test\ndependencies:\n  - numpy >=1.10\n", ("numpy >=1.10",)),
        ("name: test\nchannels:\n  - conda-forge\ndependencies:\n  - numpy\n", ("numpy",)),
        (
            "name: test\nchannels:\n  - conda-forge\ndependencies:\n  - numpy\n"
            "platforms:\n  - linux-64\n",
            ("numpy",),
        ),
        (
            "name: test\nchannels: [conda-forge]\ndependencies: [pytest]\ncategory: test\n",
            ("pytest",),
        ),
        ("name: test\ndependencies: [python]\nprefix: ~/envs/test\n", ("python",)),
    ],
)
def test_cep_24_examples(text: str, conda: tuple[str, ...], tmp_path: Path) -> None:
    assert spec(text, tmp_path).conda == conda


def test_cep_24_pip_and_comment_selectors(tmp_path: Path) -> None:
    """`If false, both the expression and the value MUST be removed`."""
    text = "dependencies:\n  - python\n  - pywin32  # [win]\n  - numpy\n  - pip:\n      - scipy\n"
    path = tmp_path / "test.yml"
    path.write_text(text)
    found = read_spec(path)
    assert found.pip == ("scipy",)
    assert "pywin32" in found.conda  # kept as written; it is chosen when a platform is known
    from envferry.specs.syntax.selectors import selector_lines

    assert [selector for _, _, selector in selector_lines(text)] == ["win"]


def test_cep_24_other_keys_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`They MUST be ignored and the user SHOULD receive an informative warning about them`."""
    found = spec("name: a\nauthor: me\nvariable: {A: b}\ndependencies: [numpy]\n", tmp_path)
    assert found.conda == ("numpy",)
    assert "test.yml:2: `author` is ignored: not a key of a spec" in caplog.text
    assert "perhaps you meant `variables`" in caplog.text


@pytest.mark.parametrize("section", ["cargo: [ripgrep]", "sel(win): pywin32"])
def test_cep_24_unknown_sections_are_an_error(section: str, tmp_path: Path) -> None:
    """`The conda client MUST error out by default if it cannot process unknown sections`."""
    with pytest.raises(SpecError, match=re.escape(section.partition(":")[0])):
        spec(f"dependencies: [numpy, {{{section}}}]\n", tmp_path)


@pytest.mark.parametrize("name", ["a/b", "a b", "a:b", "a#b", "base", "root"])
def test_cep_24_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(name)):
        spec(f"name: '{name}'\ndependencies: [numpy]\n", tmp_path)


def test_cep_24_noarch_is_no_platform(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="noarch"):
        spec("dependencies: [numpy]\nplatforms: [noarch]\n", tmp_path)


def test_cep_24_nodefaults_is_not_passed_to_the_solver(tmp_path: Path) -> None:
    found = spec("channels: [conda-forge, nodefaults]\ndependencies: [a]\n", tmp_path)
    assert found.channels == ("conda-forge",)


def test_cep_24_variables_become_text_and_state(tmp_path: Path) -> None:
    """`Values SHOULD be str. If they are not, they MUST be converted to str`."""
    found = spec("dependencies: [a]\nvariables: {A: 1, B: true, C: 1.50}\n", tmp_path)
    assert found.options.variables == {"A": "1", "B": "true", "C": "1.50"}
    (tmp_path / "conda-meta").mkdir()
    write_state(tmp_path, dict(found.options.variables))
    # CEP 32: `a dictionary with a single key, env_vars, [...] that maps strings to strings`.
    state = json.loads((tmp_path / "conda-meta/state").read_text())
    assert state == {"env_vars": {"A": "1", "B": "true", "C": "1.50"}}


# CEP 22 and PEP 668: frozen environments


def test_cep_22_and_pep_668_marks() -> None:
    files = [
        FileEntry(path="lib/python3.12", type="directory", mode=0o755),
        FileEntry(path="lib/python3.1", type="symlink", mode=0o777, link="python3.12"),
    ]
    marks = {item.entry.path: content_of(item).decode() for item in frozen_members(files, "demo")}
    assert set(marks) == {"conda-meta/frozen", "lib/python3.12/EXTERNALLY-MANAGED"}
    frozen = json.loads(marks["conda-meta/frozen"])
    assert list(frozen) == ["message"]
    assert "specs/demo.yml" in frozen["message"]
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(marks["lib/python3.12/EXTERNALLY-MANAGED"])
    assert parser["externally-managed"]["Error"] == frozen["message"]


# CEP 32: records of conda-meta


def test_cep_32_a_record_without_a_channel_has_its_keys() -> None:
    package = CondaPackage(name="python", version="3.12.1", build="h_0_cpython", subdir="linux-64")
    record = record_of(package, [{"_path": "bin/python", "path_type": "hardlink"}])
    text = ("build", "channel", "extracted_package_dir", "fn", "name", "subdir", "url", "version")
    assert all(isinstance(record[key], str) for key in text)
    assert record["url"] == f"{record['channel']}/{record['subdir']}/{record['fn']}"
    assert set(record["link"]) == {"source", "type"}
    assert set(record["paths_data"]) == {"paths", "paths_version"}
    assert record["files"] == ["bin/python"]


# CEP 47: when a package came into its channel


@pytest.mark.parametrize("form", FORMS)
def test_cep_47_the_time_in_the_index_is_preferred(tmp_path: Path, form: str) -> None:
    """`SHOULD prefer indexed_timestamp when present`; else `clients MAY fall back to timestamp`."""
    old, new = 1_600_000_000_000, 1_780_000_000_000
    channel = write_channel(
        tmp_path / "channel",
        record("tool", "1", timestamp=new, indexed_timestamp=old),
        record("tool", "2", timestamp=old, indexed_timestamp=new),
        record("built", "1", timestamp=old),
        record("built", "2", timestamp=new),
        form=form,
    )
    request = CondaRequest(
        written=SpecAsWritten(path="spec.yml", channels=()),
        platforms=(LINUX,),
        channels=(str(channel),),
        conda={LINUX: ("tool", "built")},
        has_pip=False,
        exclude_newer="2025-01-01",
    )
    answer = solution(request, LINUX, indexes(tmp_path))
    assert {item.name: item.version for item in answer.packages} == {"tool": "1", "built": "1"}


def test_cep_47_the_time_is_the_servers_and_not_the_build_tools(tmp_path: Path) -> None:
    """`It MUST be set by the channel server or indexing tool, not by the build tool`."""
    package = CondaPackage(name="tool", version="1", build="h_0", subdir="linux-64")
    assert "indexed_timestamp" not in record_of(package, [])


# CEP 37: conda-lock.yml


def lock_of(*packages: LockedPackage) -> LockContents:
    return LockContents(
        name="test",
        source="test.yml",
        channels=("https://example.org/channel",),
        packages=packages,
        content_hashes={"linux-64": "d" * 64},
        spec_digest="e" * 64,
        options=SpecOptions(),
        tools={},
    )


def pip_package(name: str, url: str, sha256: str) -> LockedPackage:
    return LockedPackage(
        manager="pip", name=name, version="1", platform="linux-64", url=url, sha256=sha256
    )


PACKAGES = (
    pip_package("at-commit", f"git+https://example.org/at-commit.git@{COMMIT}", COMMIT),
    pip_package("deep", f"git+ssh://git@example.org/r.git@{COMMIT}#subdirectory=deep", COMMIT),
    pip_package("folder", "file:///work/folder/", FOLDER_DIGEST),
    pip_package("six", "https://example.org/six-1-py3-none-any.whl", SHA),
)
METADATA = {
    *("content_hash", "channels", "platforms", "sources", "time_metadata", "git_metadata"),
    *("inputs_metadata", "custom_metadata"),
}
PACKAGE = {
    *("name", "version", "manager", "platform", "dependencies", "url", "hash", "source", "build"),
    *("category", "optional"),
}


def test_cep_37_only_the_keys_that_it_allows() -> None:
    document: dict[str, Any] = yaml.safe_load(render_lock(lock_of(*PACKAGES)))
    assert set(document) == {"version", "metadata", "package"}
    assert document["version"] == 1
    assert set(document["metadata"]) <= METADATA
    custom = document["metadata"]["custom_metadata"]
    assert all(isinstance(value, str) for value in custom.values())
    for item in document["package"]:
        assert set(item) <= PACKAGE
        assert {"name", "version", "manager", "platform", "url", "hash", "optional"} <= set(item)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_cep_37_a_hash_is_that_of_a_downloaded_artifact(tmp_path: Path) -> None:
    """A commit is not a `hexadecimal digest string [...] of the downloaded artifact`."""
    path = tmp_path / "test.conda-lock.yml"
    lock = write_lock(path, lock_of(*PACKAGES))
    document = yaml.safe_load(path.read_text())
    hashes = {item["name"]: item["hash"] for item in document["package"]}
    assert hashes == {"at-commit": {}, "deep": {}, "folder": {}, "six": {"sha256": SHA}}
    assert lock.packages == PACKAGES
    from conda_lock.lockfile import parse_conda_lock_file

    assert {item.url for item in parse_conda_lock_file(path).package} == {
        item.url for item in PACKAGES
    }


def test_cep_37_what_conda_lock_and_older_versions_wrote_is_read(tmp_path: Path) -> None:
    document = yaml.safe_load(render_lock(lock_of(*PACKAGES)))
    del document["metadata"]["custom_metadata"]["envferry_folder_digests"]
    for item in document["package"]:
        written = {package.name: package.sha256 for package in PACKAGES}
        item["hash"] = {"sha256": written[item["name"]]}
    path = tmp_path / "test.conda-lock.yml"
    path.write_text(yaml.safe_dump(document))
    assert read_lock(path).packages == PACKAGES


@pytest.mark.parametrize(
    "url", ["https://example.org/six-1-py3-none-any.whl", "git+https://example.org/r@main"]
)
def test_cep_37_a_file_without_a_hash_is_refused(url: str, tmp_path: Path) -> None:
    document = yaml.safe_load(render_lock(lock_of(pip_package("six", url, SHA))))
    document["package"][0]["hash"] = {}
    with pytest.raises(SpecError, match="no hash for six"):
        parse_lock(yaml.safe_dump(document), tmp_path / "test.conda-lock.yml")


# CEP 46: __cuda_arch


def test_cep_46_absent_without_cuda() -> None:
    both = {"CONDA_OVERRIDE_CUDA": "12.4", "CONDA_OVERRIDE_CUDA_ARCH": "8.0"}
    assert virtual_packages("linux-64", both)["__cuda_arch"] == ("8.0", "0")
    alone = {"CONDA_OVERRIDE_CUDA_ARCH": "8.0"}
    assert "__cuda_arch" not in virtual_packages("linux-64", alone)
    empty = {"CONDA_OVERRIDE_CUDA": "12.4", "CONDA_OVERRIDE_CUDA_ARCH": ""}
    assert "__cuda_arch" not in virtual_packages("linux-64", empty)


@pytest.mark.parametrize("value", ["9.0a", "sm_80", "8"])
def test_cep_46_a_capability_is_major_and_minor(value: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"cuda_arch: {value}"):
        spec(f"dependencies: [a]\nenvferry: {{system: {{cuda_arch: {value}}}}}\n", tmp_path)


def test_cep_46_decides_what_is_locked(tmp_path: Path) -> None:
    packages = [
        TinyPackage(name="kernels", version="1.0"),
        TinyPackage(name="kernels", version="2.0", depends=("__cuda_arch >=9.0",)),
    ]
    channel = make_channel(tmp_path / "channel", packages)
    versions = []
    for system in ("{cuda: '12.4'}", "{cuda: '12.4', cuda_arch: 8.0}", "{cuda_arch: '9.0'}"):
        path = tmp_path / "kernels.yml"
        path.write_text(
            f"channels: ['{channel}']\ndependencies: [kernels]\nenvferry: {{system: {system}}}\n"
        )
        options = LockOptions(platforms=("linux-64",), upgrade=True)
        lock = lock_spec(read_spec(path), options=options, progress=Silent())
        versions += [item.version for item in lock.packages]
    assert versions == ["1.0", "1.0", "2.0"]


def test_cep_46_is_written_only_where_it_is_given() -> None:
    """So that a host with an older envferry reads the manifests of all other environments."""
    assert b"cuda_arch" not in msgspec.json.encode(SystemRequirements(glibc="2.36"))
    assert b'"cuda_arch":"8.0"' in msgspec.json.encode(SystemRequirements(cuda_arch="8.0"))


# PEP 508, 621, 735 and 751: what is imported


def imported(text: str, name: str, tmp_path: Path) -> Imported:
    source = tmp_path / name
    source.write_text(text)
    (tmp_path / "specs").mkdir()
    return import_spec(source, tmp_path / "specs", ImportOptions(name="test"))


PEP_508 = [
    "A",
    "A.B-C_D",
    "aa",
    "name",
    "name<=1",
    "name>=3",
    "name>=3,<2",
    "name[fred,bar] ; python_version=='2.7'",
    "pip @ https://github.com/pypa/pip/archive/1.3.1.zip#sha1=da9234ee9982d4bbb3c72346a6de940a148ea686",
]
"""The simple examples of its test suite."""


def test_pep_508_every_form_is_taken_as_it_is_written(tmp_path: Path) -> None:
    found = imported("\n".join(PEP_508) + "\n", "requirements.txt", tmp_path)
    assert list(found.spec.pip) == PEP_508


def test_pep_621_and_735(tmp_path: Path) -> None:
    text = """
[project]
name = "spam"
version = "2020.0.0"
requires-python = ">=3.8"
dependencies = ["httpx", "gidgethub[httpx]>4.0.0", "django>2.1; os_name != 'nt'"]

[project.optional-dependencies]
gui = ["PyQt5"]

[dependency-groups]
test = ["pytest", "coverage"]
all = [{include-group = "test"}, "mypy"]
"""
    found = imported(text, "pyproject.toml", tmp_path)
    assert found.spec.pip == ("httpx", "gidgethub[httpx]>4.0.0", "django>2.1; os_name != 'nt'")
    assert "python >=3.8" in found.spec.conda
    notes = "\n".join(found.notes)
    for left_out in ("PyQt5", "pytest", "coverage", "mypy"):
        assert left_out in notes


PYLOCK = f"""
lock-version = "1.0"
requires-python = "==3.12.*"
created-by = "test"

[[packages]]
name = "attrs"
version = "25.1.0"
wheels = [
  {{name = "attrs-25.1.0-py3-none-any.whl", url = "https://example.org/attrs-25.1.0-py3-none-any.whl", hashes = {{sha256 = "{SHA}"}}}},
]

[[packages]]
name = "colorama"
version = "1"
marker = "sys_platform == 'win32'"
wheels = [
  {{name = "colorama-1-py3-none-any.whl", url = "https://example.org/colorama-1-py3-none-any.whl", hashes = {{sha256 = "{SHA}"}}}},
]
"""  # noqa: E501


@pytest.mark.skipif(current_platform() != "linux-64", reason="the lock is for it")
def test_pep_751_markers_decide_and_hashes_stay(tmp_path: Path) -> None:
    found = imported(PYLOCK, "pylock.toml", tmp_path)
    assert found.lock is not None
    [entry] = found.lock.candidates
    assert (entry["name"], entry["version"]) == ("attrs", "25.1.0")
    assert [wheel["hashes"]["sha256"] for wheel in entry["wheels"]] == [SHA]


def test_pep_751_another_major_version_is_refused(tmp_path: Path) -> None:
    """`Tools MUST raise an error if a file has a major version that is not supported`."""
    with pytest.raises(SpecError, match=r"2\.0"):
        imported(PYLOCK.replace('"1.0"', '"2.0"'), "pylock.toml", tmp_path)
