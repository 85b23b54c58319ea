"""Every list can be sorted, by links alone: both ways, and over all of its pages."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from envferry.index import RegistryIndex, queries
from envferry.index.match_spec import MatchSpec
from envferry.models import PackageFacts
from envferry.registry import Registry
from envferry.registry.host_reports import HostReport, ReportedEnvironment, write_report
from envferry.web import columns
from envferry.web.app import make_app
from envferry.web.site import RegistryView
from tests.support.artifacts import PLATFORM
from tests.support.published import Made, publish
from tests.web.test_web import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSIONS = ("2.9", "2.10", "2.9.1", "1.0")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryIndex]:
    home: Path = tmp_path_factory.mktemp("sorting")
    registry = Registry.open(str(home / "registry"))
    for number, version in enumerate(VERSIONS):
        facts = tuple(
            PackageFacts(
                name=name,
                version=f"{number}.{10 * place}",
                kind="conda" if place % 2 else "pypi",
                license=("MIT", "Apache-2.0", None)[(number + place) % 3],
                size=(7 * number + 3 * place) % 11,
            )
            for place, name in enumerate(("zlib", "attrs", "Numpy", "torch")[number % 2 :])
        )
        for name in ("demo", f"other-{number}"):
            made = Made(name=name, seed=number, version=version, packages=facts)
            manifest = publish(registry, home / "packed", made, f"t{9 - number}", "latest")
        environment = ReportedEnvironment(
            name=f"other-{number}", id=manifest.id, platform=PLATFORM, is_current=True, ref="r"
        )
        report = HostReport(
            host=f"gpu{number}",
            time=f"2026-11-{20 - number}T08:00:00Z",
            envferry="1",
            environments=(environment,),
        )
        write_report(registry, report)
    with closing(RegistryIndex.open(registry, home / "cache")) as index:
        index.refresh()
        yield index


@pytest.fixture(scope="module")
def client(index: RegistryIndex) -> Iterator[TestClient]:
    site = RegistryView(index)
    site.refresh()
    with TestClient(make_app(site), base_url="http://127.0.0.1") as client:
        yield client
    site.wait()


DIFF = f"old=demo/{PLATFORM}/t9&new=demo/{PLATFORM}/t8"
LISTS: tuple[tuple[str, str, str, str, Any], ...] = (
    ("/", "", "environments", "", columns.ENVIRONMENTS),
    ("/envs/demo/", "", "entries", "", columns.ENTRIES),
    (f"/envs/demo/{PLATFORM}/t7/", "", "packages", "", columns.PACKAGE_COLUMNS),
    (f"/envs/demo/{PLATFORM}/t7/", "", "licenses", "licenses_", columns.LICENSES),
    ("/diff/", DIFF, "changes", "", columns.CHANGES),
    ("/find/", "q=*", "matches", "", columns.FINDS),
    ("/tags/", "", "tags", "", columns.TAGS),
    ("/hosts/", "", "rows", "", columns.HOSTS),
)


def rows(client: TestClient, path: str, query: str, field: str) -> list[dict[str, Any]]:
    twin = (path[:-1] or "/index") + ".json"
    answer = client.get(f"{twin}?{query}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()[field]
    return found


@pytest.mark.parametrize(
    ("path", "query", "field", "prefix", "known"), LISTS, ids=[one[2] for one in LISTS]
)
def test_each_column_sorts_both_ways_and_the_page_links_to_it(
    client: TestClient, path: str, query: str, field: str, prefix: str, known: Any
) -> None:
    usual = rows(client, path, query, field)
    assert len(usual) > 1
    page = client.get(f"{path}?{query}")
    links = {
        tuple(values)
        for link in Reader(page.text, path).links
        if (values := parse_qs(urlsplit(link).query).get(f"{prefix}sort"))
    }
    for name, column in known.items():
        # An environment for one platform has no column for it.
        assert (name,) in links or (field, name) == ("entries", "platform")
        both = []
        for order in ("asc", "desc"):
            asked = f"{query}&{prefix}sort={name}&{prefix}order={order}"
            found = rows(client, path, asked, field)
            assert sorted(map(str, found)) == sorted(map(str, usual))
            both.append(found)
            if (name,) in links:
                text = client.get(f"{path}?{asked}").text
                said = {"asc": "ascending", "desc": "descending"}[order]
                assert f'aria-sort="{said}"' in text
        first = rows(client, path, f"{query}&{prefix}sort={name}", field)
        assert first == both[column.descends]
        if len({str(values) for values in both[0][0].values()}) > 1 and name in both[0][0]:
            keys = [one[name] for one in both[0]]
            assert keys[::-1] == [one[name] for one in both[1]]


def test_versions_are_sorted_as_versions(client: TestClient) -> None:
    found = rows(client, "/envs/demo/", "sort=version&order=asc", "entries")
    assert [one["version"] for one in found] == ["1.0", "2.9", "2.9.1", "2.10"]
    found = rows(client, "/find/", "q=torch&sort=version&order=asc", "matches")
    versions = [one["version"] for one in found]
    assert versions == ["0.30", "0.30", "1.20", "1.20", "2.30", "2.30", "3.20", "3.20"]


def test_a_page_is_a_part_of_the_sorted_whole(index: RegistryIndex) -> None:
    wanted = MatchSpec.parse("*")

    def names(part: queries.MatchPart) -> list[str]:
        return [one.package.lower() for one in index.ask(queries.find(wanted, part=part))]

    whole = names(queries.MatchPart(order="package"))
    assert whole == sorted(whole)
    parts = [
        names(queries.MatchPart(order="package", limit=5, offset=start)) for start in (0, 5, 10)
    ]
    assert [name for part in parts for name in part] == whole[:15]
    assert names(queries.MatchPart(order="package", is_descending=True)) == whole[::-1]


def test_a_second_list_and_a_filter_stay_as_they_are(client: TestClient) -> None:
    place = f"/envs/demo/{PLATFORM}/t7/"
    asked = "q=t&sort=name&order=desc&licenses_sort=license&licenses_order=asc"
    page = Reader(client.get(f"{place}?{asked}").text, place)
    queries_ = [parse_qs(urlsplit(link).query) for link in page.links if "sort=" in link]
    assert queries_
    for one in queries_:
        assert one["q"] == ["t"]
        assert {"sort", "licenses_sort"} <= one.keys()
    hidden = {
        attrs["name"]: attrs["value"]
        for tag, attrs in page.tags
        if tag == "input" and attrs.get("type") == "hidden"
    }
    assert hidden == {
        "sort": "name",
        "order": "desc",
        "licenses_sort": "license",
        "licenses_order": "asc",
    }


@pytest.mark.parametrize("sort", ["", "bogus", "name;drop", "rank", "id DESC"])
def test_another_column_is_the_usual_one(client: TestClient, sort: str) -> None:
    for path, query, field, prefix, _ in LISTS:
        usual = rows(client, path, query, field)
        assert rows(client, path, f"{query}&{prefix}sort={sort}", field) == usual
