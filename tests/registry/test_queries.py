"""What is different between two artifacts, and who needs a package."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envferry.errors import IntegrityError, NotFound
from envferry.models import LockedPackage, PackageFacts
from envferry.registry.dependents import MOST_LEVELS, Dependencies, need_lines
from envferry.registry.diff import compare_packages


def facts(name: str, version: str, size: int = 1, **more: str) -> PackageFacts:
    return PackageFacts(
        name=name, version=version, kind="conda", size=size, build=more.get("build")
    )


def test_packages_that_are_not_alike() -> None:
    before = (facts("a", "1"), facts("b", "1", 5), facts("c", "1", build="h0"), facts("e", "1"))
    after = (facts("b", "2", 9), facts("c", "1", build="h1"), facts("d", "1", 7), facts("e", "1"))
    found = [
        (c.change, c.name, c.before, c.after, c.grows) for c in compare_packages(before, after)
    ]
    assert found == [
        ("removed", "a", "1", None, -1),
        ("changed", "b", "1", "2", 4),
        ("changed", "c", "1=h0", "1=h1", 0),
        ("added", "d", None, "1", 7),
    ]
    assert list(compare_packages(before, before)) == []


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("12"))), st.data())
def test_a_comparison_turned_round(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("12"))))
    one, two = (tuple(facts(*pair) for pair in dict(side).items()) for side in (pairs, other))
    there = [(c.name, c.before, c.after) for c in compare_packages(one, two)]
    back = [(c.name, c.after, c.before) for c in compare_packages(two, one)]
    assert there == back


def bill(**needs: list[str]) -> bytes:
    """A CycloneDX list of packages that need others, and of an environment that has them all."""
    names = sorted({*needs, *(one for those in needs.values() for one in those)})
    refs = {name: f"pkg:pypi/{name}@1" for name in names}
    return msgspec.json.encode(
        {
            "bomFormat": "CycloneDX",
            "metadata": {"component": {"bom-ref": "root"}},
            "components": [{"bom-ref": refs[name], "name": name, "version": "1"} for name in names],
            "dependencies": [
                {"ref": "root", "dependsOn": list(refs.values())},
                *(
                    {"ref": refs[name], "dependsOn": [refs[one] for one in those]}
                    for name, those in needs.items()
                ),
            ],
        }
    )


def lines(dependencies: Dependencies, name: str) -> list[str]:
    (need,) = dependencies.why(name, "demo")
    return list(need_lines(need))


def test_a_tree_up_to_what_was_asked_for() -> None:
    found = Dependencies.of_sbom(
        bill(app=["web", "cli"], web=["http"], cli=["http"], http=["idna"], other=["web"]), "sbom"
    )
    assert lines(found, "IDNA") == [
        "└── http 1",
        "    ├── cli 1",
        "    │   └── app 1",
        "    └── web 1",
        "        ├── app 1",
        "        └── other 1",
    ]
    assert lines(found, "app") == []
    assert found.why("app", "demo")[0].kind == "pypi"


def test_a_part_of_the_tree_stands_there_once() -> None:
    found = Dependencies.of_sbom(bill(a=["b"], b=["c", "d"], c=["e"], d=["e"]), "sbom")
    assert lines(found, "e") == [
        "├── c 1",
        "│   └── b 1",
        "│       └── a 1",
        "└── d 1",
        "    └── b 1 (see above)",
    ]


def test_circles_and_depth_end() -> None:
    circle = Dependencies.of_sbom(bill(a=["b"], b=["a"]), "sbom")
    assert lines(circle, "a") == ["└── b 1", "    └── a 1 (see above)"]
    chain = {f"p{n}": [f"p{n + 1}"] for n in range(3000)}
    deep = lines(Dependencies.of_sbom(bill(**chain), "sbom"), "p3000")
    assert len(deep) == MOST_LEVELS


def test_an_unknown_package_says_what_is_near() -> None:
    found = Dependencies.of_sbom(bill(numpy=["openblas"]), "sbom")
    with pytest.raises(NotFound, match="no package nunpy") as caught:
        found.why("nunpy", "demo")
    assert "numpy" in caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"components": 3}', b'{"metadata": {}, "components": [{}]}']
)
def test_damaged_lists(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="sbom"):
        Dependencies.of_sbom(data, "sbom")


def locked(manager: str, name: str, *needs: str) -> LockedPackage:
    return LockedPackage(
        manager=manager,  # type: ignore[arg-type]
        name=name,
        version="1",
        platform="linux-64",
        url="https://host/x",
        dependencies=dict.fromkeys(needs, "*"),
    )


def test_two_packages_of_one_name() -> None:
    """conda's tbb is a library, pip's brings another one."""
    found = Dependencies.of_lock(
        (
            *(locked("conda", "tbb", "python"), locked("conda", "mkl", "tbb")),
            *(locked("pip", "tbb"), locked("pip", "numba", "TBB", "python")),
            locked("conda", "python"),
        )
    )
    needs = [(one.kind, [need.name for need in one.needed_by]) for one in found.why("tbb", "demo")]
    assert needs == [("conda", ["mkl"]), ("pypi", ["numba"])]
    assert [one.name for one in found.why("python", "demo")[0].needed_by] == ["numba", "tbb"]


def test_a_lock_says_it_too() -> None:
    found = Dependencies.of_lock(
        (
            locked("conda", "python"),
            locked("pip", "Rich", "markdown-it-py"),
            locked("pip", "markdown_it_py", "python"),
        )
    )
    assert lines(found, "python") == ["└── markdown_it_py 1", "    └── Rich 1"]
