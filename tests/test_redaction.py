"""What is taken out of URLs, and what is not."""

from __future__ import annotations

import pytest

from envferry.redaction import (
    fit_to_show,
    secret_parameters,
    without_credentials,
    without_login,
    without_secret_parameters,
)

TOKEN = "tk-01234567-89ab-cdef-0123-456789abcdef"
PIP_SOURCE = "https://files.example.org/packages/source/t/torch/torch-2.8.tar.gz"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@host/t/tk-12/main/linux-64/a.conda", "https://host/main/linux-64/a.conda"),
        ("https://host:8443/t/tk-12/team/main", "https://host:8443/team/main"),
        ("https://[::1]:80/t/tk-12/main/noarch/", "https://[::1]:80/main/noarch/"),
        ("see https://a.org/t/x1/c, https://b.org/t/x2/d", "see https://a.org/c, https://b.org/d"),
        ("https://host/t/tk-12/main::python=3", "https://host/main::python=3"),
        ("HTTPS://HOST/t/tk-12/main", "HTTPS://HOST/main"),
        (f"https://host:8080/conda/t/{TOKEN}/team/main", "https://host:8080/conda/team/main"),
        (f"https://host/api/repo/t/{TOKEN}/main/noarch", "https://host/api/repo/main/noarch"),
        (f"https://host/t/{TOKEN}/linux-64, see", "https://host/linux-64, see"),
        (f"https://host/t/{TOKEN}", "https://host"),
        # A channel at the host's root.
        ("https://host/t/tk-12", "https://host"),
        ("https://host/t/tk-12/", "https://host/"),
        ("https://host/t/tk-12/linux-64/a-1-0.conda", "https://host/linux-64/a-1-0.conda"),
        ("https://host/t/tk-12/noarch/repodata.json", "https://host/noarch/repodata.json"),
        ("https://host/t/tk-12::python=3", "https://host::python=3"),
        ("'https://host/t/tk-12', https://host/t/x; y", "'https://host', https://host; y"),
    ],
)
def test_tokens_of_conda_channels_go(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        PIP_SOURCE,
        "https://host/conda/t/team/linux-64/a-1-0.conda",
        "https://host/conda/t/team",
        "https://host/t",
        "https://host/t/linux-64",
        "https://host/t/noarch/a-1-0.conda",
        "file:///t/team/channel/linux-64/a-1-0.conda",
        "file:///srv/t/team/channel",
        "/srv/t/team/specs/demo.yml is older than /t/x/y",
        "s3://bucket/t/team/x",
    ],
)
def test_other_folders_of_that_name_stay(text: str) -> None:
    assert without_credentials(text) == text


@pytest.mark.parametrize(
    "text", ["https://host/t/torch/torch-2.8-py3-none-any.whl", PIP_SOURCE, "git+https://h/t/a/b"]
)
def test_what_pip_names_has_no_tokens(text: str) -> None:
    assert without_login(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git+https://TOKEN@host/a.git", "git+https://host/a.git"),
        ("https://user:pass@host/a", "https://host/a"),
        ("see 'https://user:pa'ss@host/a' and 'b@c'", "see 'https://host/a' and 'b@c'"),
        ("'https://a:80','b@c'", "'https://a:80','b@c'"),
        ("git+ssh://git@host/a.git", "git+ssh://git@host/a.git"),
        ("git+ssh://alice@host:29418/a.git", "git+ssh://alice@host:29418/a.git"),
        ("git+ssh://alice:secret@host/a.git", "git+ssh://host/a.git"),
        ("name@https://host/a@b", "name@https://host/a@b"),
    ],
)
def test_logins(text: str, expected: str) -> None:
    assert without_login(text) == without_credentials(text) == fit_to_show(text) == expected


def test_a_message_says_that_there_is_more() -> None:
    shown = fit_to_show("https://u:p@host/t/tk-12/main and /srv/t/team/x and " + PIP_SOURCE)
    assert shown == "https://host/t/…/main and /srv/t/team/x and " + PIP_SOURCE
    shown = fit_to_show(f"https://host/conda/t/{TOKEN}/main, https://host/t/{TOKEN}")
    assert shown == "https://host/conda/t/…/main, https://host/t/…"
    shown = fit_to_show("'https://host/t/tk-12' is not https://host/t/tk-12/linux-64")
    assert shown == "'https://host/t/…' is not https://host/t/…/linux-64"


@pytest.mark.parametrize(
    ("query", "left", "names"),
    [
        ("token=abc", "", ("token",)),
        ("v=1&access_token=abc&w=2", "v=1&w=2", ("access_token",)),
        ("private_token=glpat-1", "", ("private_token",)),
        (
            "X-Amz-Date=1&X-Amz-Credential=AK%2F1&X-Amz-Signature=ab",
            "X-Amz-Date=1",
            ("X-Amz-Credential", "X-Amz-Signature"),
        ),
        ("sv=2024&sp=r&sig=a%2Bb", "sv=2024&sp=r", ("sig",)),
        ("design=1&keyboard=2&tokenizer=3", "design=1&keyboard=2&tokenizer=3", ()),
    ],
)
def test_what_gives_access_in_a_query(query: str, left: str, names: tuple[str, ...]) -> None:
    url = f"https://host/a-1.whl?{query}#sha256=12"
    assert secret_parameters(url) == names
    bare = f"https://host/a-1.whl{left and '?'}{left}#sha256=12"
    assert without_secret_parameters(url) == bare
    shown = fit_to_show(f"cannot read {url}, see there")
    assert [f"{name}=…" for name in names if f"{name}=…" not in shown] == []
    secrets = [value.rpartition("=")[2] for value in query.split("&") if value not in left]
    assert not any(f"={secret}" in shown for secret in secrets)
