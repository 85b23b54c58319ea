"""`release --audit`: what the policy does not let through is neither built nor tagged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.advisories import write_records
from tests.support.tiny_specs import make_tiny_channel, tiny_specs

if TYPE_CHECKING:
    from pathlib import Path


def test_a_policy_stops_a_release(tmp_path: Path) -> None:
    channel = make_tiny_channel(tmp_path / "channel", ["one"])
    runner = tiny_specs(tmp_path, ["one"], str(channel))
    strict = tmp_path / "strict.toml"
    strict.write_text('unknown = "deny"\n')
    said = runner.run("release", "one", "--audit", strict, expect=7)
    assert "does not exist" in said.stderr
    runner.run("audit", "update", write_records(tmp_path / "osv"))
    said = runner.run("release", "one", "--audit", strict, expect=12)
    assert "the policy does not allow libone 1.0" in said.stderr
    assert not (tmp_path / "registry").exists()
    assert (
        "libone" in runner.run("release", "one", "--audit", strict, "--dry-run", expect=12).stderr
    )
    for preview in ("--plan", "--dry-run"):
        # As much as it has to be told: the database is read once.
        said = runner.run("release", "one", "--audit", "any", preview)
        assert said.stderr.count("advisories as of ") == 1
    (done,) = json.loads(runner.run("release", "one", "--audit", "any", "--json").stdout)
    assert done["outcome"] == "released"
    # What is in the registry gets no other tag either.
    runner.run("release", "one", "--audit", strict, "--tag", "stable", expect=12)
    assert not list(tmp_path.glob("registry/v1/tags/one/*/stable"))
