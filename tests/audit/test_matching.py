"""Found, clean or unknown: never clean for want of data."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.audit.artifact_audit import Audit, locked_packages, require_allowed, tree_packages
from envferry.audit.audit_policy import AuditPolicy, LoadedPolicy, load_policy
from envferry.audit.components import SbomParts, components_of
from envferry.audit.matching import audit_component
from envferry.audit.vex import VexStatement, read_vex
from envferry.errors import IntegrityError, NotFound, PolicyViolation, SpecError
from envferry.models import LockedPackage, PackageFacts
from tests.support.advisories import NOW, NUMPY, OPENSSL, database, encoded, record

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.audit.matching import AuditedPackage


def package(name: str, version: str, kind: Any = "pypi", build: str | None = None) -> PackageFacts:
    return PackageFacts(name=name, version=version, kind=kind, build=build)


def audited(*packages: PackageFacts, sbom: dict[str, Any] | None = None) -> list[AuditedPackage]:
    parts = SbomParts.read(encoded(sbom), "test") if sbom else SbomParts()
    return [audit_component(one, database()) for one in components_of(packages, parts)]


def state_of(found: PackageFacts) -> str:
    return audited(found)[0].state


def test_a_python_package_is_found_with_what_fixes_it() -> None:
    (found,) = audited(package("NumPy", "1.26.4"))
    (one,) = found.vulnerabilities
    assert found.state == "found"
    assert (one.id, one.level, one.fixed) == ("CVE-2026-0001", "high", ("1.26.5",))
    assert one.aliases == ("GHSA-aaaa-bbbb-cccc", "PYSEC-2026-1"), "aliases are one vulnerability"


def test_a_python_package_without_advisories_is_clean() -> None:
    assert state_of(package("numpy", "2.0")) == "clean"
    assert state_of(package("rich", "13")) == "clean"


@pytest.mark.parametrize(
    ("name", "version", "build", "expected"),
    [
        ("numpy", "1.26.4", "py311h123abcd_0", "found"),
        ("numpy", "2.0", "py311h123abcd_0", "clean"),
        ("numpy-base", "1.26.4", "py311h123abcd_0", "unknown"),
        ("pytorch", "2.9.0", "cuda129_py311_300", "found"),
        ("pytorch", "2.8.0", "py3.11_cuda12.9_0", "clean"),
        ("openssl", "1.1.1w", "h7f8727e_0", "found"),
        ("openssl", "3.5.4", "h26f9b46_0", "clean"),
        ("zlib", "1.3.1", "h0_0", "unknown"),
        ("_openmp_mutex", "4.5", "2_gnu", "unknown"),
    ],
)
def test_conda_packages_by_their_names_elsewhere(
    name: str, version: str, build: str, expected: str
) -> None:
    (found,) = audited(package(name, version, "conda", build))
    assert found.state == expected, found
    assert (found.state == "unknown") == bool(found.reason)


def test_a_database_without_an_ecosystem_calls_nothing_of_it_clean() -> None:
    only_c = database(OPENSSL)
    (found,) = (audit_component(one, only_c) for one in components_of([package("rich", "1")]))
    assert (found.state, found.reason) == ("unknown", "the database has no advisories for PyPI")


def test_tags_that_nobody_understands_leave_a_library_undecided() -> None:
    affected: Any = OPENSSL["affected"]
    odd = {**OPENSSL, "affected": [{**affected[0], "versions": ["snapshot-20230101"]}]}
    (component,) = components_of([package("openssl", "3.5.4", "conda", "h_0")])
    found = audit_component(component, database(odd))
    assert (found.state, found.vulnerabilities) == ("unknown", ())
    assert "CVE-2023-0286 cannot be decided" in found.reason


def test_what_cannot_be_decided_is_unknown() -> None:
    broken = record("X-1", "rich", {"introduced": "0"}, {"fixed": "no version"})
    (component,) = components_of([package("rich", "13")])
    assert audit_component(component, database(broken)).state == "unknown"


def component(name: str, version: str, purl: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": version, "purl": purl, "components": list(parts)}


def test_parts_of_packages_are_audited_too() -> None:
    """By auditwheel's SBOM, as far as it says what they are."""
    wheel = component(
        *("pillow", "12", "pkg:pypi/pillow@12"),
        component("openssl", "1.1.1w", ""),
        component("libwebp", "1.6", "pkg:rpm/almalinux/libwebp@1.6"),
        component("libgrafted", "", ""),
        component("numpy", "1.26.4", "pkg:pypi/numpy@1.26.4"),
    )
    found = audited(package("pillow", "12"), sbom={"components": [wheel]})
    states = {(one.name, one.kind, one.within): one.state for one in found}
    assert states == {
        ("pillow", "pypi", ""): "clean",
        ("openssl", "vendored", "pillow"): "found",
        ("libwebp", "vendored", "pillow"): "unknown",
        ("libgrafted", "vendored", "pillow"): "unknown",
        ("numpy", "vendored", "pillow"): "found",
    }


def test_the_distributions_of_a_conda_package_are_its_names() -> None:
    inside = component("numpy", "1.26.4", "pkg:pypi/numpy@1.26.4")
    outer = component("numpy-base", "1.26.4", "pkg:conda/numpy-base@1.26.4", inside)
    found = audited(
        package("numpy-base", "1.26.4", "conda", "py311_0"), sbom={"components": [outer]}
    )
    assert [(one.name, one.state) for one in found] == [("numpy-base", "found")]


def test_a_forged_sbom_hides_nothing_that_the_manifest_lists() -> None:
    """No signature binds it: packages and their versions come from the manifest."""
    lie = component("numpy", "2.0", "pkg:pypi/numpy@2.0")
    other = component("pytorch", "9", "pkg:conda/pytorch@9", component("x", "1", "pkg:pypi/x@1"))
    wanted = [package("numpy", "1.26.4"), package("pytorch", "2.9.0", "conda", "py311_0")]
    forged = component("numpy", "2.0", "pkg:conda/numpy@2.0", lie)
    (inner,) = audited(
        package("numpy", "1.26.4", "conda", "py311_0"), sbom={"components": [forged]}
    )
    assert inner.state == "found"
    for components in ([], [lie, other]):
        found = audited(*wanted, sbom={"components": components})
        assert [one.state for one in found] == ["found", "found"]


def test_a_damaged_sbom_is_an_error() -> None:
    with pytest.raises(IntegrityError, match="the SBOM of demo is damaged"):
        SbomParts.read(b"{", "demo")


def test_locks_name_the_distributions_of_conda_packages() -> None:
    locked = LockedPackage(
        manager="conda",
        name="numpy-base",
        version="1.26.4",
        platform="linux-64",
        url="https://conda.example/c/linux-64/numpy-base-1.26.4-py311_0.conda",
        build="py311_0",
        record={"purls": ["pkg:pypi/numpy@1.26.4", "pkg:generic/x"]},
    )
    packages, parts = locked_packages([locked])
    (found,) = (audit_component(one, database()) for one in components_of(packages, parts))
    assert found.state == "found"


def test_an_installed_tree_is_read_as_it_is(tmp_path: Path) -> None:
    info = tmp_path / "lib/python3.11/site-packages/pillow-12.dist-info"
    (info / "sboms").mkdir(parents=True)
    sbom = {"bomFormat": "CycloneDX", "components": [{"name": "openssl", "version": "1.1.1w"}]}
    (info / "sboms/auditwheel.cdx.json").write_bytes(encoded(sbom))
    (info / "METADATA").write_text("Name: pillow\nVersion: 12\n")
    (info / "RECORD").write_text(
        "pillow-12.dist-info/sboms/auditwheel.cdx.json,,\n"
        "pillow.libs/libtiff-0123abcd.so.6.1.0,,\npillow.libs/libssl-0123abcd.so.1.1,,\n"
    )
    packages, parts = tree_packages(tmp_path)
    found = {
        one.name: audit_component(one, database()).state for one in components_of(packages, parts)
    }
    assert found == {
        "pillow": "clean",
        "openssl": "found",
        "libtiff": "unknown",
        "libssl": "unknown",
    }


# Policies and VEX


def policy(tmp_path: Path, text: str) -> LoadedPolicy:
    (tmp_path / "policy.toml").write_text(text)
    return load_policy(str(tmp_path / "policy.toml"))


def refused(loaded: LoadedPolicy, *packages: PackageFacts) -> tuple[str, ...]:
    audit = Audit(database=database(), loaded=loaded, now=NOW)
    return audit.of_packages("demo@0123456789ab", packages).refused


NUMPY_FACTS = package("numpy", "1.26.4")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("any", True), ("low", True), ("high", True), ("critical", False)],
)
def test_levels_are_policies(name: str, expected: bool) -> None:
    assert bool(refused(load_policy(name), NUMPY_FACTS)) is expected


def test_what_has_no_level_may_be_the_worst() -> None:
    assert refused(load_policy("critical"), package("torch", "2.9.0")) == ("torch 2.9.0",)


def test_unknown_packages_may_be_denied(tmp_path: Path) -> None:
    zlib = package("zlib", "1.3.1", "conda", "h_0")
    assert refused(load_policy("any"), zlib) == ()
    assert refused(policy(tmp_path, 'unknown = "deny"'), zlib) == ("zlib 1.3.1",)


@pytest.mark.parametrize(
    ("until", "more", "expected"),
    [
        ("2026-11-29", "", ()),
        ("2026-11-28", "", ("numpy 1.26.4",)),
        ("2026-12-31", 'package = "NumPy"', ()),
        ("2026-12-31", 'package = "scipy"', ("numpy 1.26.4",)),
    ],
)
def test_what_is_ignored_counts_again_after_its_day(
    tmp_path: Path, until: str, more: str, expected: tuple[str, ...]
) -> None:
    text = f'[[ignore]]\nid = "GHSA-aaaa-bbbb-cccc"\nreason = "not called"\nuntil = {until}\n{more}'
    assert refused(policy(tmp_path, text), NUMPY_FACTS) == expected


OPENVEX = {
    "@context": "https://openvex.dev/ns/v0.2.0",
    "@id": "https://site.example/vex/1",
    "author": "us",
    "timestamp": "2026-10-01T00:00:00Z",
    "version": 1,
    "statements": [
        {
            "vulnerability": {"name": "CVE-2026-0001"},
            "products": [{"@id": "pkg:pypi/numpy@1.26.4"}],
            "status": "not_affected",
            "justification": "vulnerable_code_not_in_execute_path",
        }
    ],
}
CYCLONEDX_VEX = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "metadata": {"timestamp": "2026-10-01T00:00:00Z"},
    "vulnerabilities": [
        {
            "id": "GHSA-aaaa-bbbb-cccc",
            "analysis": {"state": "not_affected", "detail": "we do not call it"},
            "affects": [
                {"ref": "urn:cdx:3e671687-395b-41f5-a30f-a58921a69b79/1#pkg:pypi/numpy@1.26.4"}
            ],
        }
    ],
}


def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return an OpenVEX document with another statement."""
    return {**document, "statements": [{**document["statements"][0], **fields}]}


@pytest.mark.parametrize(
    ("document", "is_silent"),
    [
        (OPENVEX, True),
        (CYCLONEDX_VEX, True),
        (changed(OPENVEX, products=[{"@id": "pkg:pypi/numpy"}]), True),
        (changed(OPENVEX, products=[{"@id": "pkg:pypi/numpy@1.26.3"}]), False),
        (changed(OPENVEX, products=[{"@id": "pkg:generic/demo"}]), True),
        (changed(OPENVEX, products=[{"@id": "pkg:generic/other"}]), False),
        (
            changed(
                OPENVEX,
                products=[
                    {"@id": "pkg:generic/demo", "subcomponents": [{"@id": "pkg:pypi/scipy"}]}
                ],
            ),
            False,
        ),
        (changed(OPENVEX, products=[]), False),
        (changed(OPENVEX, status="under_investigation"), False),
        (changed(OPENVEX, vulnerability={"name": "CVE-1999-0001"}), False),
        ({**OPENVEX, "timestamp": "2025-01-01T00:00:00Z"}, False),
        ({**OPENVEX, "timestamp": ""}, False),
    ],
)
def test_vex_silences_with_a_reason_and_until_a_day(
    tmp_path: Path, document: dict[str, Any], is_silent: bool
) -> None:
    (tmp_path / "vex").mkdir()
    (tmp_path / "vex/one.json").write_bytes(encoded(document))
    loaded = policy(tmp_path, 'vex = ["vex/*.json"]\nvex_days = 90')
    audit = Audit(database=database(), loaded=loaded, now=NOW)
    found = audit.of_packages("demo@0123456789ab", [NUMPY_FACTS])
    assert (found.refused == ()) is is_silent
    (one,) = found.packages[0].vulnerabilities
    assert found.packages[0].state == "found", "it is silenced, not gone"
    if is_silent:
        assert one.silenced is not None
        assert one.silenced.reason
        assert one.silenced.until == "2026-12-30"


def test_a_statement_of_several_products_is_about_each() -> None:
    """Whatever their order: one that fits in name alone hides no other."""
    (numpy,) = audited(NUMPY_FACTS)
    statement = VexStatement(
        vulnerabilities=frozenset(),
        products=("pkg:generic/demo", "pkg:generic/other", "pkg:pypi/numpy"),
        subcomponents=("pkg:pypi/scipy",),
        reason="",
        day=NOW.date(),
        source="",
    )
    assert statement.is_about(numpy, "demo")
    turned = msgspec.structs.replace(statement, products=statement.products[::-1])
    assert turned.is_about(numpy, "demo")
    named = msgspec.structs.replace(statement, products=statement.products[:2])
    assert not named.is_about(numpy, "demo")
    named = msgspec.structs.replace(named, subcomponents=("pkg:pypi/numpy",))
    assert named.is_about(numpy, "other")
    assert not named.is_about(numpy, "third")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("fail = 3", SpecError, "not valid"),
        ('fail = "dire"', SpecError, "not valid"),
        ("colour = 1", SpecError, "colour"),
        ("fail =", SpecError, "not TOML"),
        ('[[ignore]]\nid = "X"\nreason = "r"', SpecError, "until"),
        ('vex = ["none/*.json"]', NotFound, "does not exist"),
        ('vex = ["/etc/*.json"]', SpecError, "beside or below"),
        ('vex = ["../*.json"]', SpecError, "beside or below"),
        ('vex = ["policy.toml"]', SpecError, "not a VEX document"),
    ],
)
def test_policies_that_are_not(
    tmp_path: Path, text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        policy(tmp_path, text)


def test_a_policy_that_is_missing() -> None:
    with pytest.raises(NotFound, match="the policy medum does not exist"):
        load_policy("medum")


def test_a_document_that_states_nothing_is_not_vex(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(encoded(NUMPY))
    with pytest.raises(SpecError, match="not a VEX document"):
        read_vex(tmp_path / "x.json")
    with pytest.raises(NotFound):
        read_vex(tmp_path / "y.json")


def test_a_refusal_names_what_is_refused() -> None:
    audit = Audit(database=database(), loaded=load_policy("any"), now=NOW)
    found = audit.of_packages("demo@0123456789ab", [NUMPY_FACTS])
    with pytest.raises(PolicyViolation, match=r"demo@0123456789ab: .* numpy 1\.26\.4"):
        require_allowed([found])
    require_allowed([audit.of_packages("demo@0123456789ab", [package("rich", "1")])])


def test_ages_of_policies() -> None:
    assert LoadedPolicy(policy=AuditPolicy()).max_age is None
    assert LoadedPolicy(policy=AuditPolicy(max_age_days=2)).max_age is not None
    assert date(2026, 11, 29) == NOW.date()


def fuzzed(id_: str, *versions: str, ends: bool = True, repo: str = "libtiff") -> dict[str, Any]:
    """Return a record in the shape of OSS-Fuzz's own."""
    events = [{"introduced": "3" * 40}, *([{"fixed": "7" * 40}] if ends else [])]
    source = f"https://gitlab.com/{repo}/{repo}"
    return {
        "id": id_,
        "modified": "2026-10-01T00:00:00Z",
        "summary": "Use-of-uninitialized-value in TIFFYCbCrtoRGB",
        "affected": [
            {
                "package": {"name": repo, "ecosystem": "OSS-Fuzz"},
                "ranges": [{"type": "GIT", "repo": source, "events": events}],
                "ecosystem_specific": {"severity": "MEDIUM"},
                "versions": list(versions),
            }
        ],
    }


TIFF_CVE = {**fuzzed("CVE-2026-8", "v4.5.0"), "affected": fuzzed("x", "v4.5.0")["affected"]}


@pytest.mark.parametrize(
    ("records", "version", "state", "words"),
    [
        ([fuzzed("OSV-1", "v4.0.10")], "4.0.10", "found", ""),
        # Fuzzing does not find all that is known of a library.
        ([fuzzed("OSV-1", "v4.0.10")], "4.7.0", "unknown", "only what OSS-Fuzz found"),
        ([fuzzed("OSV-1", "v4.0.10"), TIFF_CVE], "4.7.0", "clean", ""),
        # A fault that no release had: its list is empty, and others have tags in theirs.
        ([fuzzed("OSV-1"), fuzzed("OSV-2", "v4.0.10"), TIFF_CVE], "4.7.0", "clean", ""),
        ([fuzzed("OSV-1", ends=False), TIFF_CVE], "4.7.0", "unknown", "OSV-1 cannot be decided"),
        # Nothing says that tags of this repository are known at all.
        ([fuzzed("OSV-1")], "4.7.0", "unknown", "OSV-1 cannot be decided"),
        (
            [fuzzed(f"OSV-{number}") for number in range(1, 8)],
            *("4.7.0", "unknown", "OSV-1, OSV-2, OSV-3 and 4 more cannot be decided"),
        ),
    ],
)
def test_what_fuzzing_found(
    records: list[dict[str, Any]], version: str, state: str, words: str
) -> None:
    (component,) = components_of([package("libtiff", version, "conda", "h0_0")])
    found = audit_component(component, database(*records))
    assert (found.state, words in found.reason) == (state, True), found
