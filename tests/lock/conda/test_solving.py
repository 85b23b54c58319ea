"""What rattler makes of channels' indexes: fields of match specs, priorities, shapes of records."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from msgspec.structs import replace

from envferry.errors import SpecError
from envferry.lock.conda.conda_failures import explain
from envferry.lock.conda.conda_messages import CondaAnswer, CondaRequest, SpecAsWritten
from envferry.lock.conda.virtual_packages import virtual_packages
from envferry.models import SystemRequirements
from tests.support.channel_indexes import FORMS, indexes
from tests.support.repodata_channels import LINUX, record, write_channel
from tests.support.solving import solution

if TYPE_CHECKING:
    from envferry.models import ChannelPriority


def solved(
    home: Path,
    channels: list[Path | str],
    *lines: str,
    priority: ChannelPriority = "strict",
    system: SystemRequirements | None = None,
) -> dict[str, str]:
    """Return version and build of what solves some lines, by name; raise what a lock raises."""
    answer, request = asked(home, channels, *lines, priority=priority, system=system)
    if answer.error:
        raise explain(answer, request)
    return {item.name: f"{item.version} {item.build}" for item in answer.packages}


def asked(
    home: Path,
    channels: list[Path | str],
    *lines: str,
    priority: ChannelPriority = "strict",
    system: SystemRequirements | None = None,
) -> tuple[CondaAnswer, CondaRequest]:
    request = CondaRequest(
        written=SpecAsWritten(path="spec.yml", channels=(), system=system or SystemRequirements()),
        platforms=(LINUX,),
        channels=tuple(map(str, channels)),
        conda={LINUX: lines},
        has_pip=False,
        priority=priority,
    )
    return solution(request, LINUX, indexes(home)), request


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    return write_channel(
        tmp_path / "channel",
        record("tool", "1", "h1_1", build_number=1, license="MIT"),
        record("tool", "1", "h2_2", build_number=2, license="BSD", track_features="old"),
        record("tool", "1", "pyh3_0", subdir="noarch", noarch="generic", license="GPL"),
    )


@pytest.mark.parametrize(
    ("line", "build"),
    [
        ("tool[build_number=1]", "h1_1"),
        ("tool[build_number='<1']", "pyh3_0"),
        ("tool[license=BSD]", "h2_2"),
        ("tool[subdir=noarch]", "pyh3_0"),
        ("tool[fn=tool-1-h1_1.conda]", "h1_1"),
        ("tool[build='h2*']", "h2_2"),
        ("tool =1 h1_*", "h1_1"),
        ("tool[md5={md5}]", "h1_1"),
        ("tool[sha256={sha256}]", "h1_1"),
        ("tool[url='{channel}/linux-64/tool-1-h1_1.conda']", "h1_1"),
        ("{channel}/linux-64/tool-1-h1_1.conda", "h1_1"),
        ("{channel}/linux-64/tool-1-h1_1.conda#{md5}", "h1_1"),
        ("{channel}/noarch::tool", "pyh3_0"),
        ("tool[channel={channel}, build_number=1]", "h1_1"),
    ],
)
def test_fields_in_brackets_are_obeyed(
    tmp_path: Path, channel: Path, line: str, build: str
) -> None:
    known = record("tool", "1", "h1_1")
    text = line.format(channel=channel.as_uri(), md5=known["md5"], sha256=known["sha256"])
    assert solved(tmp_path, [channel], text) == {"tool": f"1 {build}"}


@pytest.mark.parametrize(
    "line",
    [
        *("tool[build_number=9]", "tool[license=None]", "tool[subdir=linux-ppc64le]"),
        *("tool[fn=other-1-0.conda]", f"tool[md5={'0' * 32}]", f"tool[sha256={'0' * 64}]"),
        "{channel}/linux-64/tool-1-h9_9.conda",
    ],
)
def test_what_no_record_has_has_no_solution(tmp_path: Path, channel: Path, line: str) -> None:
    with pytest.raises(SpecError, match="No candidates were found for tool"):
        solved(tmp_path, [channel], line.format(channel=channel.as_uri()))


@pytest.mark.parametrize("line", ["tool[colour=red]", "to[ol", "tool >=1,<<2"])
def test_what_nobody_can_obey_is_refused(tmp_path: Path, channel: Path, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        solved(tmp_path, [channel], line)
    assert caught.value.message.startswith(f"spec.yml: `{line}` is not a valid conda package")


@pytest.fixture
def two(tmp_path: Path) -> list[Path | str]:
    """Two channels: the second has what the first has too old."""
    first = write_channel(tmp_path / "first", record("lib", "1"), record("tool", "1"))
    second = write_channel(
        tmp_path / "second", record("lib", "2"), record("app", "1", depends=["lib >=2"])
    )
    return [first, second]


def test_what_only_another_channel_solves_is_named(tmp_path: Path, two: list[Path | str]) -> None:
    with pytest.raises(SpecError) as caught:
        solved(tmp_path, two, "app", "tool")
    asked_for = f"file://{two[1]}::lib"
    assert f"there is one with {asked_for}, but an earlier channel" in caught.value.message
    assert f"`{asked_for}`" in caught.value.hint
    assert "channel_priority: flexible" in caught.value.hint
    both = {"app": "1 0", "lib": "2 0", "tool": "1 0"}
    assert solved(tmp_path, two, "app", "tool", asked_for) == both
    assert solved(tmp_path, two, "app", "tool", priority="flexible") == both


def test_priorities(tmp_path: Path, two: list[Path | str]) -> None:
    assert solved(tmp_path, two, "lib") == {"lib": "1 0"}
    assert solved(tmp_path, two, "lib", priority="flexible") == {"lib": "1 0"}
    assert solved(tmp_path, two, "lib", priority="disabled") == {"lib": "2 0"}
    with pytest.raises(SpecError) as caught:
        solved(tmp_path, two, "lib >=3")
    assert "there is one" not in caught.value.message


def test_a_line_may_name_a_channel_that_the_list_lacks(
    tmp_path: Path, two: list[Path | str]
) -> None:
    assert solved(tmp_path, two[:1], f"file://{two[1]}::lib") == {"lib": "2 0"}


@pytest.mark.parametrize("form", FORMS)
def test_shapes_of_records(tmp_path: Path, form: str) -> None:
    old = {**record("old", "2015", ending=".tar.bz2"), "sha256": None}
    del old["sha256"]
    folder = write_channel(
        tmp_path / "channel",
        record("tool", "1", depends=["lib", "abi 3.11.* *_cp311", "__glibc >=2.17"]),
        # `constrains` binds what is there, and brings nothing.
        record("lib", "2", constrains=["tool >=2"]),
        record("lib", "1", constrains=["absent <9"]),
        record("abi", "3.11", "1_cp311"),
        record("abi", "3.11", "2_pypy"),
        # Of two alike, the one without features wins, whatever its number is.
        record("blas", "1", "mkl_1", build_number=1, track_features="mkl"),
        record("blas", "1", "open_0"),
        # The newer form wins over the older one of the same build.
        record("both", "1"),
        record("both", "1", ending=".tar.bz2"),
        record("script", "1", "pyh_0", subdir="noarch", noarch="python"),
        old,
        form=form,
        removed=["tool-9-0.conda"],
    )
    lines = ("tool", "blas", "both", "script", "old")
    answer, _ = asked(tmp_path, [folder], *lines)
    assert {item.name: f"{item.version} {item.build}" for item in answer.packages} == {
        "abi": "3.11 1_cp311",
        "blas": "1 open_0",
        "both": "1 0",
        "lib": "1 0",
        "old": "2015 0",
        "script": "1 pyh_0",
        "tool": "1 0",
    }
    locked = {item.name: item for item in answer.packages}
    assert locked["both"].url.endswith("both-1-0.conda")
    assert (locked["old"].sha256, locked["old"].md5) == (None, old["md5"])
    assert locked["old"].url.endswith("/linux-64/old-2015-0.tar.bz2")
    assert locked["script"].url.endswith("/noarch/script-1-pyh_0.conda")
    assert locked["tool"].record["depends"] == ["lib", "abi 3.11.* *_cp311", "__glibc >=2.17"]
    assert locked["tool"].dependencies == {"lib": "", "abi": "3.11.*", "__glibc": ">=2.17"}
    assert locked["lib"].record["constrains"] == ["absent <9"]


@pytest.mark.parametrize("form", FORMS)
def test_packages_that_lie_elsewhere(tmp_path: Path, form: str) -> None:
    info = {"base_url": "https://files.example/pool/"}
    folder = write_channel(tmp_path / "channel", record("a", "1"), form=form, info=info)
    answer, _ = asked(tmp_path, [folder], "a")
    assert [item.url for item in answer.packages] == ["https://files.example/pool/a-1-0.conda"]


def test_environments_without_python(tmp_path: Path) -> None:
    folder = write_channel(
        tmp_path / "channel",
        record("r-base", "4.4.2"),
        record("r-digest", "0.6", "r44_0", depends=["r-base >=4.4,<4.5.0a0"]),
        record("perl", "5.32.1", "7_perl5"),
        record("perl-json", "4.1", "pl5321_0", depends=["perl >=5.32,<6.0a0 *_perl5"]),
        record("_r-mutex", "1.0.1", "anacondar_1", subdir="noarch", noarch="generic"),
    )
    found = solved(tmp_path, [folder], "r-digest", "perl-json", "_r-mutex 1.* anacondar_1")
    assert found.keys() == {"r-base", "r-digest", "perl", "perl-json", "_r-mutex"}


def test_no_cache_but_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RATTLER_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere" / name))
    assert solved(tmp_path, [write_channel(tmp_path / "c", record("a", "1"))], "a")
    assert not (tmp_path / "elsewhere").exists()


def test_several_lines_for_one_package(tmp_path: Path) -> None:
    folder = write_channel(tmp_path / "c", *(record("a", str(number)) for number in range(1, 6)))
    assert solved(tmp_path, [folder], "a >=2", "a <4") == {"a": "3 0"}


def test_what_hosts_offer(tmp_path: Path) -> None:
    folder = write_channel(
        tmp_path / "c",
        record("new", "1", depends=["__glibc >=2.34"]),
        record("fast", "1", depends=["__archspec 1 zen4"]),
        record("gpu", "1", depends=["__cuda >=12"]),
    )
    with pytest.raises(SpecError) as caught:
        solved(tmp_path, [folder], "new")
    assert "glibc: '2.34'" in caught.value.hint
    system = SystemRequirements(glibc="2.36", cuda="12.4", archspec="zen4")
    assert len(solved(tmp_path, [folder], "new", "fast", "gpu", system=system)) == 3


def test_virtual_packages_are_those_of_conda_lock() -> None:
    package = find_spec("conda_lock")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).with_name("default-virtual-packages.yaml")
    content = yaml.safe_load(path.read_text())
    for platform, table in content["subdirs"].items():
        found = virtual_packages(SystemRequirements(), platform)
        words = {
            name: version if build == "0" else f"{version} {build}"
            for name, (version, build) in found.items()
        }
        assert words == table["packages"]


def test_what_is_kept_stays_and_what_is_updated_moves_alone(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    first = [record("a", "1"), record("b", "1")]
    before, request = asked(tmp_path, [write_channel(folder, *first)], "a", "b")
    write_channel(folder, *first, record("a", "2"), record("b", "2"))
    kept = replace(request, kept=before.packages)
    assert solution(kept, LINUX, indexes(tmp_path)).packages == before.packages
    moved = solution(replace(kept, updated=("a",)), LINUX, indexes(tmp_path))
    assert {item.name: item.version for item in moved.packages} == {"a": "2", "b": "1"}


def test_the_cuda_to_declare_is_what_a_package_requires(tmp_path: Path) -> None:
    limits = record("cuda-version", "12.5", constrains=["__cuda >=12.1"])
    channel = write_channel(tmp_path / "channel", limits)
    old = SystemRequirements(cuda="11.4")
    with pytest.raises(SpecError, match=r"__cuda 11\.4") as caught:
        solved(tmp_path / "home", [channel], "cuda-version", system=old)
    assert caught.value.hint is not None
    assert "{cuda: '12.1'}" in caught.value.hint
