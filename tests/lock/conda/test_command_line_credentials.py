"""The netrc for a conda that is called to solve."""

from __future__ import annotations

import json
import netrc
from typing import TYPE_CHECKING

from envferry.lock.conda.command_line_credentials import write_netrc

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_logins_that_a_netrc_can_express(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of URLs and of rattler's file; of a token, a warning says that it stays behind."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.delenv("RATTLER_AUTH_FILE", raising=False)
    entries = {
        "a.example": {"BasicHTTP": {"username": "me", "password": r'p "w\\'}},
        "b.example": {"CondaToken": "s3cret"},
    }
    (tmp_path / ".rattler").mkdir()
    file = tmp_path / ".rattler/credentials.json"
    file.write_text(json.dumps(entries))
    file.chmod(0o600)
    (tmp_path / ".netrc").write_text("machine d.example login it password own\n")
    (tmp_path / ".netrc").chmod(0o600)
    urls = ("https://a.example/x", "https://b.example/x", "https://you:u%20u@c.example/x", "conda")
    path = write_netrc(tmp_path / "made", urls)
    assert path.read_text().splitlines() == [
        r'machine a.example login me password "p \"w\\\\"',
        'machine c.example login you password "u u"',
        "machine d.example login it password own",
    ]
    assert netrc.netrc(path).hosts["a.example"] == ("me", "", r'p "w\\')
    assert path.stat().st_mode & 0o777 == 0o600
    assert f"not told the token of b.example in {file}" in caplog.text
    assert "s3cret" not in caplog.text + path.read_text()
