"""A release on ten thousand hosts, on paper: `python -m benchmarks.fleet_model` prints the table.

Every figure follows from those that are named here; docs/scale.md says where they come from, and
has the table, which a test compares with this module.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

HOSTS, RACKS, SITES = 10_000, 250, 10
ARCHIVE_GB = 4.27
HOST_GB_S = ARCHIVE_GB / 15.0
"""What one host takes in: 15.0 s for the reference environment, disk and CPU (reference-run)."""
FRAMES = 1_300
"""Of the reference archive; each is one request."""
METADATA_REQUESTS = 7
"""Tag, manifest, attestation, Sigstore bundle (which most have not), HEAD of the archive, and two
for its index: tests/registry/test_requests.py counts them."""
SLICES = round(ARCHIVE_GB * 1e9 / (4 << 20))
LINK_GB_S = 100 / 8
"""Of the origin, of a cache of a site, and of a cache of a rack: 100 Gbit/s."""
ORIGIN_REQUESTS_S = 5_500
"""GET requests a second that S3 promises for one prefix; an artifact is in one prefix."""
REQUEST_USD = 0.0004 / 1000
EGRESS_USD_GB = 0.09
"""Out of the cloud; 0 inside of its region."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of the bytes to all hosts."""

    name: str
    readers: int
    """How many read the archive from the origin."""
    requests: int
    """For the archive, of each of them."""
    levels: tuple[float, ...]
    """Seconds that each level below the origin needs to send what it must, at least."""

    @property
    def origin_tb(self) -> float:
        """What the origin sends."""
        return self.readers * ARCHIVE_GB / 1000

    @property
    def origin_requests(self) -> int:
        """What the origin is asked: metadata goes there from every host."""
        return self.readers * self.requests + HOSTS * METADATA_REQUESTS

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds, at least, by what limits."""
        bytes_seconds = self.readers * ARCHIVE_GB / LINK_GB_S
        return {
            "origin's link": bytes_seconds,
            "origin's requests": self.origin_requests / ORIGIN_REQUESTS_S,
            "caches' links": max(self.levels, default=0.0),
            "hosts": ARCHIVE_GB / HOST_GB_S,
        }

    @property
    def usd(self) -> tuple[float, float]:
        """What requests cost, and what bytes out of a cloud cost on top."""
        return (
            self.origin_requests * REQUEST_USD,
            self.origin_tb * 1000 * EGRESS_USD_GB,
        )


def ways() -> tuple[Way, ...]:
    """Return the ways that the page compares."""
    rack = HOSTS / RACKS * ARCHIVE_GB / LINK_GB_S
    site = RACKS / SITES * ARCHIVE_GB / LINK_GB_S
    return (
        Way(name="straight from the origin", readers=HOSTS, requests=FRAMES, levels=()),
        Way(name="a cache in each of 250 racks", readers=RACKS, requests=SLICES, levels=(rack,)),
        Way(
            name="caches in 10 sites, then in racks",
            readers=SITES,
            requests=SLICES,
            levels=(site, rack),
        ),
    )


def row(way: Way) -> str:
    """Return a line of the table."""
    limit = max(way.bounds, key=lambda name: way.bounds[name])
    requests, egress = way.usd
    cells = (
        way.name,
        f"{way.origin_tb:,.2f} TB",
        f"{way.origin_requests:,}",
        f"{way.bounds[limit]:,.0f} s: {limit}",
        f"{requests:,.2f} USD",
        f"{egress:,.0f} USD",
    )
    return f"| {' | '.join(cells)} |"


def render() -> str:
    """Return the table."""
    head = (
        "| way | origin sends | origin is asked | takes at least | requests cost | bytes cost |",
        "|---|---|---|---|---|---|",
    )
    return "\n".join([*head, *map(row, ways())]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
