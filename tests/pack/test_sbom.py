"""The list of what an environment is made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from msgspec.structs import replace

from envferry.artifacts import SBOM, sbom_path
from envferry.models import BuiltEnv, DataFile, LockedPackage, SpecOptions
from envferry.pack.sbom import SbomInput, bill_of_materials, describe_license, package_url
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from tests.support.artifacts import make_artifact

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = f"sha256:{'c' * 64}"
CONDA = LockedPackage(
    manager="conda",
    name="_x-numpy",
    version="2.1+cu12!1",
    platform="linux-64",
    url="https://conda.example/forge/linux-64/_x-numpy-2.1-py311_0.conda",
    md5="a" * 32,
    build="py311_0",
    dependencies={"python": ">=3.11"},
)
PIP = LockedPackage(
    manager="pip",
    name="Rich_Text",
    version="1.0",
    platform="linux-64",
    url="https://files.example/rich_text-1.0-py3-none-any.whl",
    sha256="b" * 64,
    dependencies={"_X.numpy": "", "absent": "*"},
)


def ingredients(tmp_path: Path) -> SbomInput:
    """An environment whose wheel says its licence."""
    info = tmp_path / "lib/python3.11/site-packages/rich_text-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text("")
    (info / "METADATA").write_text("Name: rich-text\nVersion: 1.0\nLicense: mit\n")
    built = BuiltEnv(
        name="demo",
        platform="linux-64",
        prefix="/opt/conda/envs/demo",
        tree=str(tmp_path),
        lock_path="lock",
        lock_digest="d" * 64,
        content_hash="e",
        options=SpecOptions(version="7"),
        tools={"uv": "1"},
        image=IMAGE,
    )
    return SbomInput.read(built, (PIP, CONDA), tmp_path)


def test_every_package_is_there_with_its_hash_and_licence(tmp_path: Path) -> None:
    made = ingredients(tmp_path)
    bom = json.loads(bill_of_materials(made))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    pip, conda = bom["components"]
    assert conda["hashes"] == [{"alg": "MD5", "content": "a" * 32}]
    assert "licenses" not in conda
    assert pip["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]
    assert pip["licenses"] == [{"expression": "MIT"}]
    assert bom["metadata"]["component"]["version"] == "7"
    links = {item["ref"]: item.get("dependsOn", []) for item in bom["dependencies"]}
    assert links[pip["bom-ref"]] == [conda["bom-ref"]]
    assert links[bom["metadata"]["component"]["bom-ref"]] == sorted([conda["purl"], pip["purl"]])
    assert bill_of_materials(made) == bill_of_materials(replace(made, packages=(CONDA, PIP)))
    assert "timestamp" not in bom["metadata"]


def test_data_files_are_there_beside_the_packages(tmp_path: Path) -> None:
    url = "https://data.example/words.txt"
    data = DataFile(url=f"{url}?sv=1&sig=ab%2Bc", sha256="9" * 64, path="share/words.txt")
    made = ingredients(tmp_path)
    options = SpecOptions(data=(data,))
    bom = json.loads(
        bill_of_materials(replace(made, built=msgspec.structs.replace(made.built, options=options)))
    )
    (found,) = (one for one in bom["components"] if one["type"] == "data")
    assert found["name"] == "share/words.txt"
    assert found["hashes"] == [{"alg": "SHA-256", "content": "9" * 64}]
    assert found["externalReferences"] == [{"type": "distribution", "url": f"{url}?sv=1"}]
    links = {item["ref"]: item.get("dependsOn", []) for item in bom["dependencies"]}
    assert found["bom-ref"] in links[bom["metadata"]["component"]["bom-ref"]]


def test_two_packages_of_one_name(tmp_path: Path) -> None:
    """Each needs what is of its own kind."""
    twin = msgspec.structs.replace(PIP, name=CONDA.name)
    needing = msgspec.structs.replace(CONDA, name="mkl", dependencies={CONDA.name: "*"})
    made = ingredients(tmp_path)
    both = replace(made, packages=(CONDA, needing, twin, PIP))
    bom = json.loads(bill_of_materials(both))
    links = {item["ref"]: item.get("dependsOn", []) for item in bom["dependencies"]}
    assert links[str(package_url(needing))] == [str(package_url(CONDA))]
    assert links[str(package_url(PIP))] == [str(package_url(twin))]


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (PIP, "pkg:pypi/rich-text@1.0"),
        (
            CONDA,
            "pkg:conda/_x-numpy@2.1%2Bcu12%211"
            "?build=py311_0&channel=forge&subdir=linux-64&type=conda",
        ),
    ],
)
def test_package_urls(package: LockedPackage, expected: str) -> None:
    assert str(package_url(package)) == expected


def test_licences() -> None:
    assert describe_license("mit or apache-2.0") == LicenseExpression("MIT OR Apache-2.0")
    assert describe_license("Proprietary, ask us") == DisjunctiveLicense(name="Proprietary, ask us")


def test_it_travels_with_the_artifact(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "dist")
    registry = Registry.open(str(tmp_path / "registry"))
    push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    assert registry.attachment(artifact.manifest, SBOM) is None
    for _ in range(2):
        sbom_path(artifact).write_bytes(b'{"bomFormat": "CycloneDX"}\n')
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    attached = registry.attachment(artifact.manifest, SBOM)
    assert attached == sbom_path(artifact).read_bytes()


WHEEL_SBOM = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.4",
    "components": [
        {
            "type": "library",
            "name": "rich-text",
            "version": "1.0",
            "purl": "pkg:pypi/rich-text@1.0",
        },
        {
            "type": "library",
            "name": "libwebp",
            "version": "1.6.0-2.el8",
            "purl": "pkg:rpm/almalinux/libwebp@1.6.0-2.el8",
            "author": None,
        },
    ],
}


def with_parts(tmp_path: Path) -> SbomInput:
    """An environment with a Python package of conda's, OpenSSL, and a wheel with libraries."""
    made = ingredients(tmp_path)
    site = tmp_path / "lib/python3.11/site-packages"
    info = site / "rich_text-1.0.dist-info"
    (info / "sboms").mkdir()
    (info / "sboms/auditwheel.cdx.json").write_text(json.dumps(WHEEL_SBOM))
    (info / "sboms/broken.json").write_text("{")
    (info / "sboms/deep.json").write_text('{"x":' + "[" * 900 + "]" * 900 + "}")
    files = ("sboms/auditwheel.cdx.json", "sboms/broken.json", "sboms/deep.json")
    (info / "RECORD").write_text(
        "".join(f"{info.name}/{file},,\n" for file in files)
        + "rich_text.libs/libwebp-0123abcd.so.7,,\nrich_text.libs/libtiff-89abcdef.so.6.1.0,,\n"
    )
    metadata = "lib/python3.11/site-packages/numpy-2.1.dist-info/METADATA"
    (tmp_path / metadata).parent.mkdir()
    (tmp_path / metadata).write_text("Metadata-Version: 2.1\nName: NumPy\nVersion: 2.1\n\nName: x")
    (tmp_path / "conda-meta").mkdir()
    for one, listed in ((CONDA, [metadata]), (OPENSSL, [])):
        record = {"name": one.name, "version": one.version, "build": one.build, "files": listed}
        (tmp_path / f"conda-meta/{one.name}.json").write_text(json.dumps(record))
    return SbomInput.read(made.built, (PIP, CONDA, OPENSSL), tmp_path)


OPENSSL = msgspec.structs.replace(
    CONDA,
    name="openssl",
    version="3.0.17",
    build="h_0",
    url="https://conda.example/forge/linux-64/openssl-3.0.17-h_0.conda",
    dependencies={},
)


def test_scanners_find_upstream_names_and_libraries_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bom = json.loads(bill_of_materials(with_parts(tmp_path)))
    inside = {
        one["name"]: {
            (part["name"], part.get("version"), part.get("purl")) for part in one["components"]
        }
        for one in bom["components"]
        if "components" in one
    }
    assert inside == {
        "_x-numpy": {("numpy", "2.1", "pkg:pypi/numpy@2.1")},
        "Rich_Text": {
            ("libwebp", "1.6.0-2.el8", "pkg:rpm/almalinux/libwebp@1.6.0-2.el8"),
            ("libtiff", None, None),
        },
    }
    cpes = {one["name"]: one["cpe"] for one in bom["components"] if "cpe" in one}
    assert cpes == {"openssl": "cpe:2.3:a:openssl:openssl:3.0.17:*:*:*:*:*:*:*"}
    assert "broken.json is skipped" in caplog.text
    assert "deep.json is skipped" in caplog.text


def test_the_validator_of_cyclonedx_has_nothing_against_it(tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bill_of_materials(with_parts(tmp_path)).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"library"', '"x"'))


def test_an_audit_and_a_scanner_by_purl_find_the_same(tmp_path: Path) -> None:
    """Who knows only the purls in the SBOM, nested ones too, finds what `audit` finds."""
    from envferry.audit.components import SbomParts, components_of
    from envferry.audit.matching import audit_component
    from envferry.models import PackageFacts
    from tests.support.advisories import database, record

    fault = record("X-1", "numpy", {"introduced": "0"}, {"fixed": "2.2"})
    data = bill_of_materials(with_parts(tmp_path))
    waiting, purls = list(json.loads(data)["components"]), set()
    while waiting:
        one = waiting.pop()
        waiting += one.get("components", [])
        purls.add(one.get("purl", "").partition("?")[0])
    assert "pkg:pypi/numpy@2.1" in purls
    facts = [
        PackageFacts(name=CONDA.name, version=CONDA.version, kind="conda", build=CONDA.build),
        PackageFacts(name=PIP.name, version=PIP.version, kind="pypi"),
    ]
    audited = [
        audit_component(one, database(fault))
        for one in components_of(facts, SbomParts.read(data, "demo"))
    ]
    assert [one.name for one in audited if one.state == "found"] == ["_x-numpy"]
