"""Advisories of Linux distributions: for libraries that wheels bring along from an image."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from envferry.audit.components import SbomParts, components_of
from envferry.audit.distributions import apk_key, distribution_name, dpkg_key, rpm_key
from envferry.audit.matching import audit_component
from envferry.audit.version_order import MOST_CHARACTERS, version_key
from envferry.models import PackageFacts
from envferry.pack.vendored import VendoredLibrary
from tests.support.advisories import database

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.audit.advisory_database import AdvisoryDatabase
    from envferry.audit.matching import AuditedPackage

WHEEL = PackageFacts(name="x", version="1", kind="pypi")


def advisory(id_: str, ecosystem: str, name: str, fixed: str, **more: Any) -> dict[str, Any]:
    """Return a record in the shape of AlmaLinux's own."""
    return {
        "id": id_,
        "modified": "2026-11-20T00:00:00Z",
        "summary": f"Important: {name} security update",
        "affected": [
            {
                "package": {"ecosystem": ecosystem, "name": name},
                "ranges": [
                    {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}
                ],
            }
        ],
        **more,
    }


ALMA = advisory(
    *("ALSA-2022:1065", "AlmaLinux:8", "openssl-libs", "1:1.1.1k-6.el8_5"),
    related=["CVE-2022-0778"],
)
ALMA_9 = advisory("ALSA-2024:1", "AlmaLinux:9", "openssl-libs", "1:3.2.2-6.el9_5")
BUGS = advisory("ALBA-2022:9", "AlmaLinux:8", "zlib", "1.2.11-99.el8")
DEBIAN = advisory("DSA-5000-1", "Debian:12", "openssl", "3.0.13-1~deb12u1")
ALPINE = advisory("ALPINE-CVE-2026-1", "Alpine:v3.19", "zlib", "1.3.1-r1")
ALL = (ALMA, ALMA_9, BUGS, DEBIAN, ALPINE)


def audited(purl: str, found: AdvisoryDatabase | None = None) -> AuditedPackage:
    name, _, version = purl.rpartition("/")[2].partition("?")[0].partition("@")
    part = VendoredLibrary(name=name, version=version, purl=purl, evidence="a SBOM")
    parts = SbomParts.of_tree({("pypi", "x"): (part,)})
    _, component = components_of([WHEEL], parts)
    return audit_component(component, found or database(*ALL))


@pytest.mark.parametrize(
    ("purl", "state", "words"),
    [
        ("pkg:rpm/almalinux/openssl-libs@1.1.1k-5.el8_5", "found", ""),
        ("pkg:rpm/almalinux/openssl-libs@1.1.1k-5.el8_5?arch=x86_64&epoch=1", "found", ""),
        ("pkg:rpm/almalinux/openssl-libs@1:1.1.1k-5.el8_5", "found", ""),
        ("pkg:rpm/almalinux/openssl-libs@1.1.1k-6.el8_5", "clean", ""),
        ("pkg:rpm/almalinux/openssl-libs@1:1.1.1k-14.el8_6", "clean", ""),
        # Another release has other advisories.
        ("pkg:rpm/almalinux/openssl-libs@3.2.2-5.el9_5", "found", ""),
        ("pkg:rpm/almalinux/openssl-libs@3.2.2-7.el9_5", "clean", ""),
        (
            "pkg:rpm/almalinux/openssl-libs@3.2.2-1.el10",
            "unknown",
            "no advisories for AlmaLinux:10",
        ),
        # The release is needed, and what only mends bugs is no vulnerability.
        (
            "pkg:rpm/almalinux/openssl-libs@1.1.1k",
            "unknown",
            "release of AlmaLinux is not recorded",
        ),
        ("pkg:rpm/almalinux/zlib@1.2.11-25.el8", "clean", ""),
        (
            "pkg:rpm/centos/zlib@1.2.7-21.el7_9",
            "unknown",
            "advisories of centos are not known here",
        ),
        # Debian and Alpine name sources: only a name that is in the database is one.
        ("pkg:deb/debian/openssl@3.0.11-1~deb12u2", "found", ""),
        ("pkg:deb/debian/openssl@3.0.14-1~deb12u2", "clean", ""),
        ("pkg:deb/debian/libssl3@3.0.11-1~deb12u2", "unknown", "nothing says that it is libssl3"),
        ("pkg:deb/debian/openssl@3.0.11-1", "unknown", "its release of Debian is not recorded"),
        ("pkg:deb/debian/openssl@3.0.11-1?distro=debian-12", "found", ""),
        ("pkg:apk/alpine/zlib@1.3.1-r0?distro=alpine-3.19.1", "found", ""),
        ("pkg:apk/alpine/zlib@1.3.1-r1?distro=alpine-3.19.1", "clean", ""),
        ("pkg:apk/alpine/zlib@1.3.1-r1?distro=3.19.1", "unknown", "release of Alpine"),
        ("pkg:apk/alpine/zlib@1.3.1-r1", "unknown", "its release of Alpine is not recorded"),
    ],
)
def test_a_library_of_a_distribution(purl: str, state: str, words: str) -> None:
    found = audited(purl)
    assert (found.state, words in found.reason) == (state, True), found


def test_what_is_said_of_a_find() -> None:
    (one,) = audited("pkg:rpm/almalinux/openssl-libs@1.1.1k-5.el8_5").vulnerabilities
    assert (one.id, one.level, one.fixed) == ("ALSA-2022:1065", "high", ("1.1.1k-6.el8_5",))
    assert {found.id for found in database(*ALL).named("cve-2022-0778")} == {"ALSA-2022:1065"}
    assert "AlmaLinux:8" in database(*ALL).facts.ecosystems


def test_a_mended_library_is_not_held_against_upstream() -> None:
    """A distribution's 1.2.11 may have the fix that upstream's has not, and the other way round."""
    upstream = {
        "id": "CVE-2026-7",
        "modified": "2026-11-20T00:00:00Z",
        "affected": [
            {
                "ranges": [
                    {
                        "type": "GIT",
                        "repo": "https://github.com/madler/zlib",
                        "events": [{"introduced": "0"}, {"fixed": "a" * 40}],
                    }
                ],
                "versions": ["v1.2.11"],
            }
        ],
    }
    for purl in ("pkg:rpm/centos/zlib@1.2.11-25.el7", "pkg:apk/alpine/zlib@1.2.13-r0"):
        assert audited(purl, database(upstream)).state == "unknown"


@pytest.mark.parametrize(
    ("key", "ordered"),
    [
        (
            rpm_key,
            "1~rc1-1 1-0 1-1 1-1.el8 1-1.el8_5 1^git1-1 1a-1 1.0-1 1.0.1-1 1.a-1 1.1-1 1:0-1",
        ),
        (dpkg_key, "1~~ 1~rc1 1 1-1 1-1+b1 1a 1+b 1.0-1~deb12u1 1.0-1 1.0a 1.0.1 1.2 1.10 1:0"),
        (apk_key, "1_alpha 1_alpha2 1_beta 1_rc1 1 1-r1 1_git1 1_p1 1a 1.0 1.01 1.1 1.2 1.10 2"),
    ],
)
def test_orders(key: Callable[[str], Any], ordered: str) -> None:
    """By hand from the manuals; dpkg's is compared with dpkg below."""
    versions = ordered.split()
    if key is rpm_key:
        versions.remove("1.a-1")  # words are before numbers, also after a point
    keys = [key(text) for text in versions]
    assert None not in keys
    assert sorted(keys) == keys, [text for _, text in sorted(zip(keys, versions, strict=True))]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *((rpm_key, text) for text in ("", "1", "1-", "-1", "1-1-1", "a:1-1")),
        *((dpkg_key, text) for text in ("", "a1", "1-", "1_2", "1 2")),
        *((apk_key, text) for text in ("", "a", "1_foo", "1-1", "1-r", "1..2")),
    ],
)
def test_what_is_no_version(key: Callable[[str], Any], text: str) -> None:
    assert key(text) is None


def test_a_version_without_end_is_none() -> None:
    for ecosystem in ("AlmaLinux:8", "Debian:12", "Alpine:v3.19"):
        key = version_key("ECOSYSTEM", ecosystem)
        assert key is not None
        assert key("1" * MOST_CHARACTERS + "-1") is None
        assert version_key("GIT", ecosystem) is None


def test_purls_of_others_are_none() -> None:
    for purl in ("", "pkg:pypi/x@1", "pkg:rpm/x@1", "pkg:deb/ubuntu/x@1", "pkg:rpm/a/b/c@1-1.el8"):
        assert distribution_name(purl) is None


VERSIONS = st.from_regex(r"(1:)?[0-9][0-9ab.+~-]{0,6}", fullmatch=True)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is missing")
@given(VERSIONS, VERSIONS | st.none())
def test_debians_order_is_dpkgs(one: str, other: str | None) -> None:
    other = other or f"{one}~"
    keys = dpkg_key(one), dpkg_key(other)
    assume(None not in keys)
    for word, expected in (("lt", keys[0] < keys[1]), ("eq", keys[0] == keys[1])):  # type: ignore[operator]
        argv = ["dpkg", "--compare-versions", one, word, other]
        assert (subprocess.run(argv, check=False, capture_output=True).returncode == 0) == expected
